"""Our presence on one machine: its devices, its lease store, and the slots that work there."""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Any

from exo.gpu.backend import PinningAbility, TelemetryAbility
from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
from exo.gpu.execution.lease_store import HeldLease, LeaseStore
from exo.gpu.execution.pinning import LEASES_VARIABLE, apply_changes, pinning_changes
from exo.gpu.execution.state_directory import StorePlace, choose_place
from exo.gpu.nodes.policies import policies_for
from exo.gpu.nodes.transport import Grant
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.health import assess
from exo.gpu.telemetry.probe_cache import ProbeCache, cache_path
from exo.gpu.telemetry.sampler import DeviceSampler
from exo.gpu.vocabulary.errors import AbilityMissing, BackendError, NoSuchDevice
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.execution.supervisor import RunnerSupervisor
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotEvent, SlotSetup, Work
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.nodes.agent")

# A decision may rest on readings of this age at most; younger ones are not asked for again.
SAMPLE_REUSE_SECONDS = 1.0

# A slot that is not done by then is killed.
STOP_SECONDS = 5.0


class NodeAgent:
    """Everything that has to happen on the machine that owns the devices.

    ``environ`` is what processes inherit, restrictions included; the process's own by default.
    """

    def __init__(
        self, environ: Mapping[str, str] | None = None, service: GPUDiscoveryService | None = None
    ) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._umbrella = tuple(filter(None, self._environ.get(LEASES_VARIABLE, "").split(",")))
        self._service = service or GPUDiscoveryService.of_this_user(self._environ)
        self._report: DiscoveryReport | None = None
        self._store: LeaseStore | None = None
        self._sampler = DeviceSampler()
        self._collector = TelemetryCollector(max_history=1)
        self._failures: dict[str, str] = {}
        self._probes = ProbeCache(cache_path(self._environ))
        self._leases: dict[str, HeldLease] = {}
        self._slots: dict[int, tuple[RunnerSupervisor, str]] = {}
        self._numbers = itertools.count()

    @property
    def store_place(self) -> StorePlace:
        """Where the leases of this machine are kept."""
        return choose_place(self._environ)

    @property
    def sample_failures(self) -> dict[str, str]:
        """Why a device gave no sample the last time, by device id."""
        return dict(self._failures)

    def inventory(
        self, *, refresh: bool = False, deadline_seconds: float | None = None
    ) -> DiscoveryReport:
        """Every device found, and what each backend said; asked for once.

        With ``refresh`` all drivers are asked anew, also those whose last answer would do.
        ``deadline_seconds`` is for callers who would rather miss a slow driver than wait.
        """
        if self._report is None or refresh:
            self._report = self._service.discover(
                refresh=refresh, deadline_seconds=deadline_seconds
            )
        return self._report

    def forget(self, device_id: str) -> tuple[str, ...]:
        """Drop a missing device from the registry, and give back its labels.

        Raises:
            NoSuchDevice: for an id that no missing device has.

        """
        self.inventory()
        names = self._service.forget(device_id)
        self._report = self._service.report
        return names

    @property
    def registry_place(self) -> tuple[str, str] | None:
        """Path of the registry and why it could not be used, if so; None where none is kept."""
        registry = self._service.registry
        return None if registry is None else (str(registry.path), registry.problem)

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices now: samples, health and, unless unwanted, live leases."""
        self._sample()
        return self._assemble(self._open_store().live() if leases else ())

    def acquire(self, request: Request) -> Grant:
        """Decide and take the leases as one step, while no other process can."""
        from exo.gpu.scheduling.selector import leases_of, select

        policies = policies_for(request)
        self._sample()
        store = self._open_store()

        def decide(live: tuple[Lease, ...]) -> tuple[Decision, tuple[Lease, ...]]:
            snapshot = self._assemble(live)
            decision = select(snapshot, request, policies=policies)
            return decision, leases_of(snapshot, decision.chosen, request)

        taken = store.take(decide)
        self._leases.update({held.lease.lease_id: held for held in taken.leases})
        return Grant(taken.answer, tuple(held.lease.lease_id for held in taken.leases))

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        held = self._leases.pop(lease_id, None)
        if held is not None:
            held.release()

    def run_attached(self, argv: Sequence[str], lease_ids: tuple[str, ...]) -> int:
        """Run a command under the leases with the caller's terminal; its status as a shell's."""
        from exo.gpu.execution.foreground import run_attached
        from exo.gpu.execution.outcome import shell_status

        held = [self._leases[lease_id] for lease_id in lease_ids]
        changes = self.environment(tuple(lease.lease.device_id for lease in held), lease_ids)
        environ = apply_changes(self._environ, changes)
        keep_open = tuple(lease.lock_fd for lease in held)
        return shell_status(run_attached(argv, environ, keep_open))

    def open_slot(
        self, lease_id: str, setup: SlotSetup | None, sink: Callable[[SlotEvent], None]
    ) -> int:
        """Start a slot on the leased device."""
        from exo.gpu.execution.supervisor import RunnerSupervisor

        held = self._leases[lease_id]
        changes = self.environment((held.lease.device_id,), (lease_id,))
        slot_id = next(self._numbers)
        supervisor = RunnerSupervisor(
            slot_id,
            environ=apply_changes(self._environ, changes),
            keep_open=(held.lock_fd,),
            setup=setup,
            sink=sink,
        )
        self._slots[slot_id] = (supervisor, lease_id)
        return slot_id

    def submit(self, slot_id: int, work: Work) -> None:
        """Give a slot its next work."""
        self._slots[slot_id][0].submit(work)

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End slots together and release their leases; harmless twice."""
        ending = [self._slots.pop(slot_id) for slot_id in slot_ids if slot_id in self._slots]
        for supervisor, _ in ending:
            supervisor.ask_to_stop(kill=kill)
        for supervisor, lease_id in ending:
            supervisor.stop(kill=kill, timeout_seconds=STOP_SECONDS)
            self.release(lease_id)

    def environment(
        self, device_ids: tuple[str, ...], lease_ids: tuple[str, ...] = ()
    ) -> dict[str, str | None]:
        """The variables that pin a process to these devices of one backend, under these leases."""
        devices = [self._device(device_id) for device_id in device_ids]
        owners = [self._service.backend_of(device_id) for device_id in device_ids]
        backend = owners[0]
        if any(owner is not backend for owner in owners):
            names = ", ".join(f"{device.device_id} ({device.backend})" for device in devices)
            raise BackendError(f"one process cannot be pinned to devices of two kinds: {names}")
        if not isinstance(backend, PinningAbility):
            raise AbilityMissing(f"the {devices[0].backend} backend cannot pin a process")
        others = [
            self._twin_or_nothing(name, other, devices)
            for name, other in self._service.backends.items()
            if other is not backend and isinstance(other, PinningAbility)
        ]
        pinned = backend.pinning(devices, self._environ)
        changes = pinning_changes(pinned, others, devices[0])
        return changes | {LEASES_VARIABLE: ",".join((*self._umbrella, *lease_ids)) or None}

    def _twin_or_nothing(
        self, name: str, backend: PinningAbility, devices: Sequence[GPUDevice]
    ) -> dict[str, str | None]:
        """Variables by which another backend shows the same cards, or else nothing at all."""
        found = {
            device.device_id
            for finding in self.inventory().findings
            if finding.backend == name
            for device in finding.devices
        }
        if all(found.intersection(device.aliases) for device in devices):
            try:
                return backend.pinning(devices, self._environ)
            except BackendError as error:  # such as: one variable for one device, of two asked for
                logger.debug("not shown through %s: %s", name, error)
        return backend.hiding()

    def close(self) -> None:
        """End all slots, at once, and let go of all leases; harmless twice."""
        self.close_slots(tuple(self._slots), kill=True)
        for lease_id in list(self._leases):
            self.release(lease_id)
        if self._store is not None:
            self._store.close()
            self._store = None

    def _device(self, device_id: str) -> GPUDevice:
        for device in self.inventory().devices:
            if device.device_id == device_id:
                return device
        raise NoSuchDevice(f"there is no device {device_id!r} here")

    def _open_store(self) -> LeaseStore:
        if self._store is None:
            self._store = LeaseStore(self.store_place)
        return self._store

    def _sample(self) -> None:
        readers: dict[str, Callable[[], Any]] = {}
        for device in self.inventory().devices:
            backend = self._service.backend_of(device.device_id)
            age = self._collector.age_seconds(device.device_id)
            if isinstance(backend, TelemetryAbility) and (
                age is None or age > SAMPLE_REUSE_SECONDS
            ):
                readers[device.device_id] = _reader(backend, device.device_id)
        taken = self._sampler.sample(readers)
        for sample in taken.samples.values():
            self._collector.observe(sample)
            self._failures.pop(sample.device_id, None)
        self._failures.update(taken.failures)

    def _assemble(self, live: tuple[Lease, ...]) -> Snapshot:
        self._probes.refresh()
        return Snapshot(
            tuple(self._state(device, live) for device in self.inventory().devices),
            umbrella=self._umbrella,
            links=self.inventory().links,
        )

    def _state(self, device: GPUDevice, live: tuple[Lease, ...]) -> DeviceState:
        sample = self._collector.get_metrics(device.device_id)
        age = self._collector.age_seconds(device.device_id)
        health, reason = assess(sample, age)
        failure = self._failures.get(device.device_id)
        if failure is not None:
            health, reason = Health.FAILED, f"it cannot be read: {failure}"
        return DeviceState(
            device=device,
            sample=sample,
            sample_age_seconds=age,
            health=health,
            health_reason=reason,
            leases=tuple(lease for lease in live if lease.hardware_id == device.hardware_id),
            measured_gflops=self._measured_gflops(device),
        )

    def _measured_gflops(self, device: GPUDevice) -> float | None:
        found = self._probes.find(device)
        figure = found.fp32_gflops if found is not None else None
        return figure.median if figure is not None else None


def _reader(backend: TelemetryAbility, device_id: str) -> Callable[[], Any]:
    return lambda: backend.read(device_id)
