"""A node under watch: its devices sampled over and over, searched for anew, their faults heard."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import TYPE_CHECKING, TypeAlias

from exo.gpu.backend import FaultAbility, TelemetryAbility
from exo.gpu.recollection import Comings
from exo.gpu.telemetry.health.book import HealthBook
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.telemetry.sampling.readers import DeviceReader
from exo.gpu.telemetry.sampling.sampler import TelemetrySampler
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
from exo.gpu.vocabulary.inventory import ChangeKind, DeviceChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.discovery import DiscoveryReport, GPUDiscoveryService
    from exo.gpu.telemetry.collector import TelemetryCollector
    from exo.gpu.vocabulary.health import HealthVerdict

logger = logging.getLogger("exo.gpu.nodes.watching")

NodeEvent: TypeAlias = Observation | HealthEvent | DeviceChange | DeviceFault
"""What a node under watch tells."""

# A search asks every driver again, which costs more than a sample; cards come and go seldom.
SEARCH_SECONDS = 30.0

# How often time alone may turn a verdict: a device that falls silent is told within a second.
CHECK_SECONDS = 1.0

# How long a driver is waited for at a time when it is asked for faults.
_FAULT_WAIT_SECONDS = 0.5


class NodeWatch:
    """Watches the devices of one node from :meth:`start` to :meth:`stop`.

    Samples go to ``collector`` and into the health of the devices; then the sink hears of them, of
    each change of health, of faults, and of devices that come and go: one event after another,
    from threads of this class, which cannot keep a program from exiting.
    """

    def __init__(
        self,
        service: GPUDiscoveryService,
        collector: TelemetryCollector,
        sink: Callable[[NodeEvent], None],
        *,
        cadence_seconds: float = 1.0,
        search_seconds: float = SEARCH_SECONDS,
    ) -> None:
        """Nothing runs yet.

        Raises:
            InvalidValue: for a cadence that is too short.

        """
        self._service = service
        self._collector = collector
        self._health = HealthBook()
        self._failures: dict[str, str] = {}
        self._sink = sink
        self._cadence_seconds = cadence_seconds
        self._search_seconds = search_seconds
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._sampler = TelemetrySampler(self._heard, cadence_seconds=cadence_seconds)
        self._comings: Comings | None = None

    @property
    def report(self) -> DiscoveryReport:
        """The devices as the last search found them, or as they were when it missed a driver."""
        assert self._comings is not None, "it was not started"
        return self._comings.standing

    @property
    def failures(self) -> dict[str, str]:
        """Why a device gave no sample the last time, by its id."""
        return dict(self._failures)

    def verdict(self, device_id: str) -> HealthVerdict:
        """What is known of a device's health."""
        return self._health.verdict(device_id)

    def report_fault(self, fault: DeviceFault) -> None:
        """Take a fault that somebody else heard of, such as an operator or another monitor."""
        self._tell(fault, *self._health.fault(fault))

    def clear_faults(self, device_id: str) -> None:
        """Let the faults of a device count no more: it was reset, or somebody knows better."""
        self._tell(*self._health.clear_faults(device_id))

    def start(self, report: DiscoveryReport) -> None:
        """Watch the devices of a search that was just made, and search again from time to time."""
        self._comings = comings = Comings(report)
        for device in report.devices:
            self._watch(device.device_id)
            self._health.watch(device, cadence_seconds=self._cadence_seconds)
        self._sampler.start()
        self._thread("search", lambda: self._search(comings))
        self._thread("check", self._check)
        for name, backend in self._service.backends.items():
            if isinstance(backend, FaultAbility):
                self._thread(f"faults-{name}", lambda of=backend: self._listen(of))

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End within the time, whatever drivers do; harmless twice. Nothing is told any more."""
        self._ended.set()
        self._sampler.stop(timeout_seconds)

    @property
    def hanging(self) -> tuple[str, ...]:
        """Ids of the devices whose driver call has outlasted its deadline."""
        return self._sampler.hanging

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=f"exo-gpu-{name}", daemon=True).start()

    def _watch(self, device_id: str) -> None:
        backend = self._service.backend_of(device_id)
        if isinstance(backend, TelemetryAbility):
            self._sampler.watch(device_id, DeviceReader(backend, device_id))

    def _heard(self, observation: Observation) -> None:
        sample, at = observation.sample, observation.received_at
        if sample is not None:
            self._collector.observe(sample)
            self._failures.pop(observation.device_id, None)
            events = self._health.observe(sample, at)
        else:
            self._failures[observation.device_id] = observation.failure
            events = self._health.fail(
                observation.device_id, observation.failure, at, hanging=observation.hanging
            )
        self._tell(observation, *events)

    def _check(self) -> None:
        while not self._ended.wait(CHECK_SECONDS):
            self._tell(*self._health.check())

    def _search(self, comings: Comings) -> None:
        while not self._ended.wait(self._search_seconds):
            report = self._service.discover()
            if self._ended.is_set():
                return
            changes = comings.take(report)
            for change in changes:
                self._changed(change)
            self._tell(*changes, *self._health.inventory(comings.standing.devices))

    def _changed(self, change: DeviceChange) -> None:
        device_id = change.device.device_id
        if change.kind is ChangeKind.LOST:
            self._sampler.forget(device_id)
            self._failures.pop(device_id, None)
            return
        self._health.watch(change.device, cadence_seconds=self._cadence_seconds)
        self._watch(device_id)

    def _listen(self, backend: FaultAbility) -> None:
        try:
            with closing(backend.watch_faults()) as watch:
                for device_id, reason in watch.refused.items():
                    logger.info("faults of %s are not told: %s", device_id, reason)
                while not self._ended.is_set():
                    for fault in watch.faults(timeout_seconds=_FAULT_WAIT_SECONDS):
                        self.report_fault(fault)
        except BackendError as error:
            logger.info("faults are not told: %s", error)

    def _tell(self, *events: NodeEvent) -> None:
        with self._turn:
            for event in events:
                if self._ended.is_set():
                    return
                self._sink(event)
