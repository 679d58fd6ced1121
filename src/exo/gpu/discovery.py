"""The union of what all backends find: every physical device once, and why others are absent."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.backend import on_daemon_thread
from exo.gpu.factory import FIND_SECONDS, GPUBackendFactory
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.backend import GPUBackend

logger = logging.getLogger("exo.gpu.discovery")


class Finding(WireValue, frozen=True, kw_only=True):
    """What one backend found, or why it found nothing; ``seconds`` is how long it took."""

    backend: str
    devices: tuple[GPUDevice, ...] = ()
    reason: str = ""
    hint: str = ""
    """What to install or change."""
    seconds: float = 0.0
    failed: bool = False
    """True when the backend broke or hung, false when it is merely absent here."""


class DiscoveryReport(WireValue, frozen=True, kw_only=True):
    """All devices, each once: best class first, then in the order of backends and indices."""

    devices: tuple[GPUDevice, ...] = ()
    findings: tuple[Finding, ...] = ()
    """One per backend, before devices seen twice were merged."""


class GPUDiscoveryService:
    """Asks every backend at once and merges what is the same device.

    ``registry_path`` names a JSON file that each discovery replaces with its report.
    ``deadline_seconds`` bounds every backend; one that hangs is left behind on its daemon thread.
    """

    def __init__(
        self,
        registry_path: str | Path | None = None,
        *,
        backends: Mapping[str, GPUBackend] | None = None,
        deadline_seconds: float = FIND_SECONDS,
    ) -> None:
        self._registry_path = Path(registry_path) if registry_path is not None else None
        self._backends = None if backends is None else dict(backends)
        self._deadline_seconds = deadline_seconds
        self._asked: dict[str, _Question] = {}
        self._report = DiscoveryReport()

    @property
    def backends(self) -> dict[str, GPUBackend]:
        """The backends by name; made on first use."""
        if self._backends is None:
            self._backends = GPUBackendFactory.make_all()
        return self._backends

    def discover(self) -> DiscoveryReport:
        """Find every device; blocks at most for the deadline and never raises for a driver."""
        ends = time.monotonic() + self._deadline_seconds
        for name, backend in self.backends.items():
            old = self._asked.get(name)
            if old is None or old.finding is not None:
                self._asked[name] = _Question(name, backend)
        findings = tuple(self._asked[name].wait(ends) for name in self.backends)
        self._report = DiscoveryReport(devices=_merge(findings), findings=findings)
        if self._registry_path is not None:
            _write(self._registry_path, self._report)
        return self._report

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


class _Question:
    """One backend asked for its devices on its own daemon thread."""

    def __init__(self, name: str, backend: GPUBackend) -> None:
        self.finding: Finding | None = None
        self._name = name
        self._began = time.monotonic()
        self._done = threading.Event()
        threading.Thread(
            target=self._ask, args=(backend,), name=f"exo-gpu-find-{name}", daemon=True
        ).start()

    def wait(self, ends: float) -> Finding:
        self._done.wait(max(0.0, ends - time.monotonic()))
        if self.finding is not None:
            return self.finding
        seconds = time.monotonic() - self._began
        reason = f"the driver gave no answer within {seconds:.1f} s"
        logger.warning("%s: %s", self._name, reason)
        return Finding(backend=self._name, reason=reason, seconds=seconds, failed=True)

    def _ask(self, backend: GPUBackend) -> None:
        devices: Sequence[GPUDevice] = ()
        reason, hint, failed = "", "", False
        try:
            devices = backend.find()
            reason = backend.remark or ("" if devices else "its driver lists no device")
        except BackendUnavailable as error:
            reason, hint = error.reason, error.hint
        except Exception as error:
            # The vendor-read border: whatever a driver does must not hide the other vendors.
            logger.warning("%s: finding devices failed", self._name, exc_info=True)
            reason, failed = f"{type(error).__name__}: {error}", True
        self.finding = Finding(
            backend=self._name,
            devices=tuple(devices),
            reason=reason,
            hint=hint,
            seconds=time.monotonic() - self._began,
            failed=failed,
        )
        self._done.set()


def _merge(findings: Sequence[Finding]) -> tuple[GPUDevice, ...]:
    """Each physical device once, under the first backend that found it."""
    merged: list[GPUDevice] = []
    for finding in findings:
        alone = list(range(len(merged)))  # a card is the twin of one device per backend at most
        for device in finding.devices:
            place = _twin(device, merged, alone)
            if place is None:
                merged.append(device)
            else:
                merged[place] = _joined(merged[place], device)
                alone.remove(place)
    return tuple(sorted(merged, key=lambda device: device.device_class.rank))


def _twin(device: GPUDevice, known: Sequence[GPUDevice], places: Sequence[int]) -> int | None:
    """Place of the one device of another backend that is the same piece of hardware."""
    for same in (_same_uuid, _same_address):
        matches = [place for place in places if same(device, known[place])]
        if len(matches) == 1:
            return matches[0]
    return None


def _same_uuid(one: GPUDevice, other: GPUDevice) -> bool:
    if one.pci_address and other.pci_address and one.pci_address != other.pci_address:
        return False
    return _uuid(one) == _uuid(other) != ""


def _same_address(one: GPUDevice, other: GPUDevice) -> bool:
    return one.pci_address is not None and one.pci_address == other.pci_address


def _uuid(device: GPUDevice) -> str:
    """The 32 hexadecimal digits of a UUID, however the vendor writes it; else empty."""
    digits = device.hardware_id.lower().removeprefix("gpu-").replace("-", "")
    return digits if len(digits) == 32 and not set(digits) - set("0123456789abcdef") else ""


def _joined(primary: GPUDevice, twin: GPUDevice) -> GPUDevice:
    """The first backend's view, completed by what only the other one knows."""
    facts = {
        field: getattr(twin, field)
        for field in primary.__struct_fields__
        if getattr(primary, field) is None
    }
    aliases = (*primary.aliases, twin.device_id, *twin.aliases)
    return msgspec.structs.replace(primary, **facts, aliases=aliases)


def _write(path: Path, report: DiscoveryReport) -> None:
    """Replace the registry file in one step; a failure is logged, not raised."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=path.name, delete=False
        ) as draft:
            draft.write(report.to_json())
        os.replace(draft.name, path)  # noqa: PTH105 - Path.replace would need a second Path
    except OSError as error:
        logger.warning("the registry %s was not written: %s", path, error)
