"""The union of what all backends find: every physical device once, and why others are absent."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.asking import Question
from exo.gpu.backend import PinningAbility, on_daemon_thread
from exo.gpu.backends import pci
from exo.gpu.factory import FAKE_VARIABLE, FIND_SECONDS, GPUBackendFactory
from exo.gpu.merging import merge, shared_identities, without_hidden
from exo.gpu.recollection import Comings, Recollection, recollect
from exo.gpu.registry import Contents, DeviceRegistry, hand_over, left_behind, open_default
from exo.gpu.topology import joined, placed, renamed
from exo.gpu.vocabulary.errors import NoSuchDevice
from exo.gpu.vocabulary.inventory import DeviceChange, DiscoveryReport, Finding

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from exo.gpu.backend import GPUBackend
    from exo.gpu.labelled import LabelledBackend
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.links import Link

# How devices are joined is asked last; a driver that has not told it by then is left behind.
LINK_SECONDS = 2.0


class GPUDiscoveryService:
    """Asks every backend at once and merges what is the same device.

    ``registry`` keeps labels and slow drivers' answers; ``registry_path`` names its file, and
    without either nothing is kept. ``deadline_seconds`` bounds every backend; one that hangs is
    left behind on its daemon thread. ``environ`` says what is hidden, by default the process's own;
    ``sysfs`` is where the PCI bus is looked at.
    """

    def __init__(
        self,
        registry_path: str | Path | None = None,
        *,
        backends: Mapping[str, GPUBackend] | None = None,
        deadline_seconds: float = FIND_SECONDS,
        registry: DeviceRegistry | None = None,
        environ: Mapping[str, str] | None = None,
        sysfs: Path = pci.SYSFS,
    ) -> None:
        if registry is None and registry_path is not None:
            registry = DeviceRegistry(Path(registry_path))
        self.registry = registry
        self._environ = environ
        scripted = (os.environ if environ is None else environ).get(FAKE_VARIABLE)
        self._sysfs = None if scripted else sysfs
        self._backends = None if backends is None else dict(backends)
        self._views: dict[str, LabelledBackend] = {}
        self._deadline_seconds = deadline_seconds
        self._asked: dict[str, Question] = {}
        self._stuck: dict[str, Question] = {}
        self._report = DiscoveryReport()

    @classmethod
    def of_this_user(cls, environ: Mapping[str, str]) -> GPUDiscoveryService:
        """Every backend, with the user's registry; scripted devices are kept nowhere."""
        return cls(
            backends=GPUBackendFactory.make_all(environ),
            registry=None if environ.get(FAKE_VARIABLE) else open_default(environ),
            environ=environ,
        )

    @property
    def backends(self) -> dict[str, GPUBackend]:
        """The backends by name, made on first use; they know their devices by their labels."""
        return {**self._own_backends, **self._views}

    @property
    def _own_backends(self) -> dict[str, GPUBackend]:
        if self._backends is None:
            self._backends = GPUBackendFactory.make_all(self._environ)
        return self._backends

    def discover(
        self,
        *,
        refresh: bool = False,
        links: bool = True,
        deadline_seconds: float | None = None,
    ) -> DiscoveryReport:
        """Find every device; blocks at most for the deadline and never raises for a driver.

        With ``refresh`` slow drivers are asked too where their last answer would do; without
        ``links`` none is asked how its devices are joined. ``deadline_seconds`` is this search's
        own, in place of the service's.
        """
        ends = time.monotonic() + (deadline_seconds or self._deadline_seconds)
        backends = self._own_backends
        self._recall(refresh=refresh)
        for name, backend in backends.items():
            self._ask(name, backend, links=links)
        findings = tuple(self._asked[name].wait(ends) for name in backends)
        ends = min(ends, time.monotonic() + LINK_SECONDS)
        told: dict[str, list[Link]] | None = None
        if links:
            told = {name: list(self._asked[name].links(ends)) for name in backends}
        self._report = self._keep(self._placed(findings), told)
        return self._report

    @property
    def report(self) -> DiscoveryReport:
        """What the last discovery found; empty before the first."""
        return self._report

    def forget(self, device_id: str) -> tuple[str, ...]:
        """Drop a missing device from the registry; its labels, which are given back, become free.

        Raises:
            NoSuchDevice: for an id that no missing device has.

        """
        missing = self._report.missing
        for one in missing:
            names = (one.device.device_id, *one.device.aliases)
            if device_id in {*names, one.device.hardware_id}:
                rest = tuple(other for other in missing if other is not one)
                self._report = msgspec.structs.replace(self._report, missing=rest)
                self._strike(names)
                return names
        known = ", ".join(one.device.device_id for one in missing) or "none"
        raise NoSuchDevice(f"there is no missing device {device_id!r} (missing: {known})")

    def _strike(self, names: tuple[str, ...]) -> None:
        def change(old: Contents) -> tuple[Contents, dict[str, Any]]:
            known = tuple(one for one in old.known if one.device.device_id not in names)
            return msgspec.structs.replace(old, known=known), self._report.to_dict()

        if self.registry is not None:
            self.registry.update(change)

    async def discover_all_devices(self) -> dict[str, Any]:
        """Find every device without blocking the event loop.

        ``discovery_status`` is "failed" without any device, "partial" when a backend broke or
        hung, else "success"; ``backend_name`` is that of the first device.
        """
        report = await on_daemon_thread(self.discover, name="exo-gpu-discover")
        broken = any(finding.failed for finding in report.findings)
        return {
            "devices": list(report.devices),
            "backend_name": report.devices[0].backend_name if report.devices else None,
            "discovery_status": (
                "failed" if not report.devices else "partial" if broken else "success"
            ),
            "timestamp": datetime.now(tz=UTC).isoformat(),
            "findings": [finding.to_dict() for finding in report.findings],
        }

    async def watch(self, interval: float = 5.0) -> AsyncGenerator[DeviceChange]:
        """What comes and goes from now on, found by searching every ``interval`` seconds.

        The first search is the standard of comparison. A driver that hangs costs one thread, not
        one per search, and what it had found before counts as there until it answers again.
        """
        import anyio

        comings = Comings(await on_daemon_thread(self.discover, name="exo-gpu-discover"))
        while True:
            await anyio.sleep(interval)
            for change in comings.take(
                await on_daemon_thread(self.discover, name="exo-gpu-discover")
            ):
                yield change

    def get_device_by_id(self, device_id: str) -> GPUDevice | None:
        """The device that the last discovery found under an id, alias or hardware id."""
        for device in self._report.devices:
            if device_id in {device.device_id, device.hardware_id, *device.aliases}:
                return device
        return None

    def backend_of(self, device_id: str) -> GPUBackend | None:
        """The backend that reads and pins a device, or None for an id that is not known."""
        device = self.get_device_by_id(device_id)
        if device is None:
            return None
        for finding in self._report.findings:
            if any(found.device_id == device.device_id for found in finding.devices):
                return self.backends[finding.backend]
        return None

    def _ask(self, name: str, backend: GPUBackend, *, links: bool) -> None:
        """Ask a backend anew, unless it still owes an answer; at most one thread of it hangs."""
        old = self._asked.get(name)
        if old is not None and old.finding is None:
            return
        if old is not None and not old.ended:
            self._stuck[name] = old
        stuck = self._stuck.get(name)
        free = stuck is None or stuck.ended
        self._asked[name] = Question(name, backend, links=links and free)

    def _recall(self, *, refresh: bool) -> None:
        """Hand the backends what their drivers said before."""
        if self.registry is None:
            return
        answers = {} if refresh else self.registry.read().answers
        for name, backend in self._own_backends.items():
            hand_over(backend, answers.get(name, {}))

    def _placed(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        """The findings, with what the bus knows of the devices, and twins of a backend named."""
        named = map(_named_twins, findings)
        if self._sysfs is None:
            return without_hidden(tuple(named))
        known = tuple(
            msgspec.structs.replace(finding, devices=placed(finding.devices, self._sysfs))
            for finding in named
        )
        return without_hidden(known)

    def _keep(
        self, findings: tuple[Finding, ...], told: Mapping[str, list[Link]] | None
    ) -> DiscoveryReport:
        """The report under labels that stay, and the registry brought up to date."""
        if self.registry is None:
            devices = merge(finding.devices for finding in findings)
            report = DiscoveryReport(devices=devices, findings=findings)
            return self._linked(report, {}, told)
        hidden = {name for name in self._own_backends if self._hides(name)}
        kept: list[Recollection] = []

        def change(old: Contents) -> tuple[Contents, dict[str, Any]]:
            now = recollect(old.known, findings, hidden=hidden, now=time.time())
            now = msgspec.structs.replace(now, report=self._linked(now.report, now.labels, told))
            kept.append(now)
            return Contents(known=now.known, answers=self._answers(old)), now.report.to_dict()

        self.registry.update(change)
        for name, labels in kept[0].labels.items():
            self._rename(name, labels)
        return kept[0].report

    def _linked(
        self,
        report: DiscoveryReport,
        labels: Mapping[str, Mapping[str, str]],
        told: Mapping[str, list[Link]] | None,
    ) -> DiscoveryReport:
        """The report with how its devices are joined, where that was asked and as far as told."""
        if told is None:
            return report
        links = [renamed(link, labels.get(name, {})) for name, own in told.items() for link in own]
        return msgspec.structs.replace(report, links=joined(report.devices, links, self._sysfs))

    def _hides(self, name: str) -> bool:
        """True where a variable is set that can hide devices of a backend."""
        environ = os.environ if self._environ is None else self._environ
        backend = self._own_backends[name]
        hiding = backend.hiding() if isinstance(backend, PinningAbility) else {}
        return any(variable in environ for variable in hiding)

    def _rename(self, name: str, labels: Mapping[str, str]) -> None:
        """Let callers name the devices of a backend by their labels."""
        if name not in self._views:
            if all(given == own for given, own in labels.items()):
                return
            from exo.gpu.labelled import LabelledBackend

            self._views[name] = LabelledBackend(self._own_backends[name])
        self._views[name].rename(labels)

    def _answers(self, old: Contents) -> dict[str, dict[str, str]]:
        new = {name: left_behind(backend) for name, backend in self._own_backends.items()}
        return old.answers | {name: answers for name, answers in new.items() if answers is not None}

    async def shutdown(self) -> None:
        """Let go of every driver; harmless twice."""
        for backend in (self._backends or {}).values():
            await backend.shutdown()


async def discover_gpu_devices(registry_path: str | Path | None = None) -> dict[str, Any]:
    """One discovery of everything here; see :meth:`GPUDiscoveryService.discover_all_devices`."""
    service = GPUDiscoveryService(registry_path)
    try:
        return await service.discover_all_devices()
    finally:
        await service.shutdown()


def _named_twins(finding: Finding) -> Finding:
    """The finding, and in its reason the devices whose driver gave them one identity."""
    shared = shared_identities(finding.devices)
    if not shared:
        return finding
    return msgspec.structs.replace(
        finding, reason="; ".join(filter(None, (finding.reason, shared)))
    )
