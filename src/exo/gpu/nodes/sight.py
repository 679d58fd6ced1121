"""What a machine knows of its own devices: found, read, judged, and put together at one moment."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.backend import ProcessAbility, TelemetryAbility, call_with_deadline
from exo.gpu.configuration import load_configuration
from exo.gpu.nodes.foreign import ForeignProcesses
from exo.gpu.nodes.process_lists import ProcessLists
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.health.book import assess
from exo.gpu.telemetry.probe_cache import ProbeCache, cache_path
from exo.gpu.telemetry.sampling.rounds import DeviceSampler
from exo.gpu.vocabulary.errors import BackendError, NoSuchDevice
from exo.gpu.vocabulary.health import HealthVerdict
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
    from exo.gpu.execution.cordon_store import CordonStore
    from exo.gpu.nodes.watching import NodeEvent, NodeWatch
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import Cordon, DeviceFault, Health
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.process import ProcessList

logger = logging.getLogger("exo.gpu.nodes.sight")

# A decision may rest on readings of this age at most; younger ones are not asked for again.
SAMPLE_REUSE_SECONDS = 1.0

# A driver that does not list its processes by then is taken for one that cannot.
PROCESSES_SECONDS = 2.0


class NodeSight:
    """The devices of one machine: which there are, how they are, and who is kept away from them.

    ``umbrella`` are the leases under which this process itself works.
    """

    def __init__(
        self,
        service: GPUDiscoveryService,
        cordons: CordonStore,
        environ: Mapping[str, str],
        umbrella: tuple[str, ...],
    ) -> None:
        self._service = service
        self._cordons = cordons
        self._umbrella = umbrella
        self.configuration = load_configuration(environ)
        """What people set for this machine and its devices."""
        self._report: DiscoveryReport | None = None
        self._sampler = DeviceSampler()
        self._collector = TelemetryCollector(max_history=1)
        self._failures: dict[str, str] = {}
        self._read_begun: dict[str, float] = {}
        self._watch: NodeWatch | None = None
        self._probes = ProbeCache(cache_path(environ))
        self._process_lists, self._asking = ProcessLists(), threading.Lock()
        self._foreign = ForeignProcesses(
            self.processes, self.configuration.value("ignore_processes")
        )

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

    def verdict(self, device_id: str) -> HealthVerdict:
        """What is known of a device's health, by all that was heard where the node is watched."""
        if self._watch is not None:
            return self._watch.verdict(device_id)
        device = self.device(device_id)
        health, reason, _ = self._judge(
            device, self._collector.get_metrics(device_id), self._collector.age_seconds(device_id)
        )
        return HealthVerdict(health=health, reasons=(reason,) if reason else ())

    def report_fault(self, fault: DeviceFault) -> None:
        """Take a fault that somebody else heard of; harmless where nobody watches."""
        if self._watch is not None:
            self._watch.report_fault(fault)

    def clear_faults(self, device_id: str) -> None:
        """Let the faults of a device count no more; harmless where nobody watches."""
        if self._watch is not None:
            self._watch.clear_faults(device_id)

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

    def device(self, device_id: str) -> GPUDevice:
        """The device of this id.

        Raises:
            NoSuchDevice: for an id that no device here has.

        """
        for device in self.inventory().devices:
            if device.device_id == device_id:
                return device
        raise NoSuchDevice(f"there is no device {device_id!r} here")

    def look(
        self, newer_than_seconds: float = 0.0, hardware_ids: frozenset[str] | None = None
    ) -> None:
        """Read every device whose sample is old, or was begun before that monotonic time.

        With ``hardware_ids`` only those of them.
        """
        if self._watch is not None and not newer_than_seconds:
            return  # what it hears is fresh
        readers: dict[str, Callable[[], Any]] = {}
        for device in self.inventory().devices:
            if hardware_ids is not None and device.hardware_id not in hardware_ids:
                continue
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

    def processes(self) -> tuple[ProcessList, ...]:
        """Who works on each device, or why that is not known; dearer than a sample."""
        ids = [device.device_id for device in self.inventory().devices]
        backends = {name: self._service.backend_of(name) for name in ids}
        with self._asking:
            return self._process_lists.ask(backends)

    def look_for_others(self) -> None:
        """See who works on the devices under nobody's lease: :meth:`assemble` then tells it."""
        self._foreign.look()

    def seen_since(self, device_id: str) -> float | None:
        """The monotonic time at which the reading of a device's newest sample began.

        A watch does not tell when it read: then it is that of the last reading asked for here, or
        0, so that whoever has to know what is newer asks anew.
        """
        heard = self._watch is not None and self._collector.get_metrics(device_id) is not None
        return self._read_begun.get(device_id, 0.0 if heard else None)

    def driver_list(self, device_id: str) -> list[DeviceProcess] | None:
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

    def assemble(
        self, live: tuple[Lease, ...], cordons: tuple[Cordon, ...] | None = None
    ) -> Snapshot:
        """What is known now; called while the ledger is held, for a decision, it misses nobody.

        Who cordons a device first and then looks at its leases sees all that were granted before.
        """
        cordons = self._cordons.live() if cordons is None else cordons
        self._probes.refresh()
        kept_out = {cordon.hardware_id: cordon for cordon in cordons}
        report = self.inventory()
        here = {device.hardware_id for device in report.devices}
        return Snapshot(
            tuple(self._state(device, live, kept_out) for device in report.devices),
            umbrella=self._umbrella,
            links=report.links,
            unseen=tuple(lease for lease in live if lease.hardware_id not in here),
        )

    def _state(
        self, device: GPUDevice, live: tuple[Lease, ...], cordons: Mapping[str, Cordon]
    ) -> DeviceState:
        sample = self._collector.get_metrics(device.device_id)
        age = self._collector.age_seconds(device.device_id)
        leases = tuple(lease for lease in live if lease.hardware_id == device.hardware_id)
        health, reason, since = self._judge(device, sample, age)
        foreign, untold = self._foreign.of(device.device_id, leases)
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
            settings=self.configuration.settings_of(device),
            foreign=foreign,
            foreign_untold=untold,
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
