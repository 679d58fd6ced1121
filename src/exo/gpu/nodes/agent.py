"""Our presence on one machine: its devices, its lease store, and the slots that work there."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.backend import (
    PinningAbility,
    ProcessAbility,
    TelemetryAbility,
    call_with_deadline,
)
from exo.gpu.configuration import load_configuration
from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
from exo.gpu.execution.cordon_store import CordonStore
from exo.gpu.execution.pinning import LEASES_VARIABLE, apply_changes, pinning_changes
from exo.gpu.execution.state_directory import StorePlace, choose_place
from exo.gpu.nodes.leasing import Eyes, LeaseDesk
from exo.gpu.nodes.process_lists import ProcessLists
from exo.gpu.nodes.slot_keeper import SlotKeeper
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.health import assess
from exo.gpu.telemetry.probe_cache import ProbeCache, cache_path
from exo.gpu.telemetry.rounds import DeviceSampler
from exo.gpu.vocabulary.errors import AbilityMissing, BackendError, NoSuchDevice
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.nodes.leasing import OnWait
    from exo.gpu.nodes.transport import Grant
    from exo.gpu.nodes.watching import NodeEvent, NodeWatch
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import Cordon, Health
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.nodes.agent")

# A decision may rest on readings of this age at most; younger ones are not asked for again.
SAMPLE_REUSE_SECONDS = 1.0

# A list of processes is a help, not a need: a driver that is slow with it is not waited for.
PROCESSES_SECONDS = 2.0


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
        self._cordons = CordonStore(self.store_place)
        self._sampler = DeviceSampler()
        self._collector = TelemetryCollector(max_history=1)
        self._failures: dict[str, str] = {}
        self._watch: NodeWatch | None = None
        self._process_lists = ProcessLists()
        self._probes = ProbeCache(cache_path(self._environ))
        self._read_begun: dict[str, float] = {}
        self._configuration = load_configuration(self._environ)
        eyes = Eyes(self._sample, self._assemble, self._read_begun.get, self._driver_list)
        self.desk = LeaseDesk(lambda: self.store_place, eyes, self._umbrella)
        self.slots = SlotKeeper(self._environ, self.desk, self._configuration)

    @property
    def store_place(self) -> StorePlace:
        """Where the leases of this machine are kept."""
        return choose_place(self._environ)

    @property
    def sample_failures(self) -> dict[str, str]:
        """Why a device gave no sample the last time, by device id."""
        return dict(self._failures) if self._watch is None else self._watch.failures

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the devices: the newest, or under a watch those of the last time."""
        return self._collector

    def watch(
        self,
        sink: Callable[[NodeEvent], None],
        *,
        cadence_seconds: float,
        search_seconds: float,
        max_history: int,
    ) -> None:
        """Sample the devices over and over until :meth:`unwatch`, and tell the sink of it.

        From now on a snapshot asks no driver. The sink is called from threads of the watch, one
        event at a time, and must not block.

        Raises:
            InvalidValue: for a cadence that is too short or a history below 1.

        """
        from exo.gpu.nodes.watching import NodeWatch

        assert self._watch is None, "one watch at a time"
        report = self.inventory()
        collector = TelemetryCollector(max_history)
        watch = NodeWatch(
            self._service,
            collector,
            sink,
            cadence_seconds=cadence_seconds,
            search_seconds=search_seconds,
        )
        self._collector = collector
        watch.start(report)
        self._watch = watch

    def unwatch(self, timeout_seconds: float = 1.0) -> None:
        """End the watch within the time; harmless where there is none."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._report = watch.report
            watch.stop(timeout_seconds)

    def inventory(
        self,
        *,
        refresh: bool = False,
        links: bool = True,
        deadline_seconds: float | None = None,
    ) -> DiscoveryReport:
        """Every device found, and what each backend said; asked for once.

        With ``refresh`` all drivers are asked anew, also those whose last answer would do. Without
        ``links`` this node never learns how its devices are joined, which is dear where they are
        many.
        ``deadline_seconds`` is for callers who would rather miss a slow driver than wait.
        """
        if self._watch is not None and not refresh:
            return self._watch.report
        if self._report is None or refresh:
            self._report = self._service.discover(
                refresh=refresh, links=links, deadline_seconds=deadline_seconds
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

    @property
    def cordon_store(self) -> CordonStore:
        """What keeps devices of this machine out of scheduling."""
        return self._cordons

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices now: samples, health and, unless unwanted, live leases and cordons."""
        self._sample()
        if not leases:
            return self._assemble((), cordons=())
        return self._assemble(self.desk.live())

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known; dearer than a snapshot."""
        ids = [device.device_id for device in self.inventory().devices]
        return self._process_lists.ask({name: self._service.backend_of(name) for name in ids})

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: OnWait | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Grant:
        """Decide and take the leases as one step, while no other process can, or in the line."""
        return self.desk.acquire(
            request,
            wait_seconds=wait_seconds,
            lasts_seconds=lasts_seconds,
            on_wait=on_wait,
            cancelled=cancelled,
        )

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        self.desk.release(lease_id)

    def run_attached(
        self, argv: Sequence[str], lease_ids: tuple[str, ...], *, overrun: str = "warn"
    ) -> int:
        """Run a command under the leases with the caller's terminal; its status as a shell's."""
        from exo.gpu.execution.foreground import run_attached
        from exo.gpu.execution.outcome import shell_status

        held = [self.desk.held[lease_id] for lease_id in lease_ids]
        changes = self.environment(tuple(lease.lease.device_id for lease in held), lease_ids)
        environ = apply_changes(self._environ, changes)
        keep_open = tuple(lease.lock_fd for lease in held)
        with self.desk.watch(lease_ids, overrun) as watch:
            return shell_status(run_attached(argv, environ, keep_open, watch.start))

    def open_slot(
        self,
        lease_id: str,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> int:
        """Start a slot on the leased device."""
        device = self._device(self.desk.held[lease_id].lease.device_id)
        backend = self._service.backend_of(device.device_id)
        changes = self.environment((device.device_id,), (lease_id,))
        return self.slots.open(
            lease_id, device, backend, changes, setup=setup, sink=sink, on_output=on_output
        )

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
        """End all slots, at once, let go of all leases and end the watch; harmless twice."""
        self.unwatch()
        self.slots.close(kill=True)
        self.desk.close()

    def _device(self, device_id: str) -> GPUDevice:
        for device in self.inventory().devices:
            if device.device_id == device_id:
                return device
        raise NoSuchDevice(f"there is no device {device_id!r} here")

    def _sample(self, newer_than_seconds: float = 0.0) -> None:
        """Read every device whose sample is old, or was begun before that monotonic time."""
        if self._watch is not None and not newer_than_seconds:
            return  # what it hears is fresh
        readers: dict[str, Callable[[], Any]] = {}
        for device in self.inventory().devices:
            backend = self._service.backend_of(device.device_id)
            age = self._collector.age_seconds(device.device_id)
            begun = self._read_begun.get(device.device_id, 0.0)
            if isinstance(backend, TelemetryAbility) and (
                age is None or age > SAMPLE_REUSE_SECONDS or begun <= newer_than_seconds
            ):
                readers[device.device_id] = _reader(backend, device.device_id)
        begun = time.monotonic()
        taken = self._sampler.sample(readers)
        for sample in taken.samples.values():
            self._collector.observe(sample)
            self._failures.pop(sample.device_id, None)
            self._read_begun[sample.device_id] = begun
        self._failures.update(taken.failures)

    def _driver_list(self, device_id: str) -> list[DeviceProcess] | None:
        """The processes on the driver's list; None where it gives none."""
        backend = self._service.backend_of(device_id)
        if not isinstance(backend, ProcessAbility):
            return None
        try:
            return call_with_deadline(
                lambda: backend.processes(device_id),
                seconds=PROCESSES_SECONDS,
                name=f"exo-gpu-processes-{device_id}",
            )
        except (BackendError, TimeoutError) as error:
            logger.debug("%s: no list of processes: %s", device_id, error)
            return None

    def _assemble(
        self, live: tuple[Lease, ...], cordons: tuple[Cordon, ...] | None = None
    ) -> Snapshot:
        """What is known now; called while the ledger is held, for a decision, it misses nobody.

        Who cordons a device first and then looks at its leases sees all that were granted before.
        """
        cordons = self._cordons.live() if cordons is None else cordons
        self._probes.refresh()
        kept_out = {cordon.hardware_id: cordon for cordon in cordons}
        return Snapshot(
            tuple(self._state(device, live, kept_out) for device in self.inventory().devices),
            umbrella=self._umbrella,
        )

    def _state(
        self, device: GPUDevice, live: tuple[Lease, ...], cordons: Mapping[str, Cordon]
    ) -> DeviceState:
        sample = self._collector.get_metrics(device.device_id)
        age = self._collector.age_seconds(device.device_id)
        leases = tuple(lease for lease in live if lease.hardware_id == device.hardware_id)
        health, reason, since = self._judge(device, sample, age)
        return DeviceState(
            device=device,
            sample=sample,
            sample_age_seconds=age,
            health=health,
            health_reason=reason,
            health_since=since,
            leases=leases,
            cordon=_as_it_stands(cordons.get(device.hardware_id), leases),
            measured_gflops=self._measured_gflops(device),
            settings=self._configuration.settings_of(device),
        )

    def _judge(
        self, device: GPUDevice, sample: GPUMetrics | None, age_seconds: float | None
    ) -> tuple[Health, str, float | None]:
        """Health, its reasons and its beginning: with history where the node is watched."""
        if self._watch is not None:
            verdict = self._watch.verdict(device.device_id)
            return verdict.health, "; ".join(verdict.reasons), verdict.since
        failure = self._failures.get(device.device_id, "")
        return *assess(sample, age_seconds, device=device, failure=failure), None

    def _measured_gflops(self, device: GPUDevice) -> float | None:
        found = self._probes.find(device)
        figure = found.fp32_gflops if found is not None else None
        return figure.median if figure is not None else None


def _reader(backend: TelemetryAbility, device_id: str) -> Callable[[], Any]:
    return lambda: backend.read(device_id)


def _as_it_stands(cordon: Cordon | None, leases: tuple[Lease, ...]) -> Cordon | None:
    """A drain has come to its end when the last lease has."""
    if cordon is None or leases or not cordon.draining:
        return cordon
    return msgspec.structs.replace(cordon, draining=False)
