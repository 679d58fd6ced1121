"""GPUClusteringManager: a table of devices joined with what was heard of them and how to choose."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from exo.gpu.backend import on_daemon_thread
from exo.gpu.coordination.cluster_side import ClusterSide
from exo.gpu.coordination.device_health import DeviceHealth
from exo.gpu.coordination.recording import NOT_WANTED, HistoryKeeper, Recording
from exo.gpu.coordination.roster import Roster
from exo.gpu.coordination.strangers import Strangers
from exo.gpu.scheduling.distribution import Distribution
from exo.gpu.scheduling.distributor import Maxima
from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.selector import select
from exo.gpu.scheduling.strategies import Terms, distribute
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.table.turns import Turns
from exo.gpu.telemetry_protocol import Heartbeat
from exo.gpu.vocabulary.decision import Decision
from exo.gpu.vocabulary.device import DeviceCapabilities, GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, ManagerClosed, NoSuchDevice
from exo.gpu.vocabulary.health import HealthEvent
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS, DeviceState, Snapshot
from exo.gpu.vocabulary.units import check_number, check_whole

if TYPE_CHECKING:
    from exo.gpu.coordination.leases import LeasedDevice

logger = logging.getLogger(__name__)

Task = TypeVar("Task")


class GPUClusteringManager(ClusterSide):
    """Registers devices of any vendor, keeps what they report, picks one and splits work.

    It starts nothing and reserves nothing: two callers that select at the same moment get the same
    device. To hold one, take a lease. Every call is short, from any task or thread; after
    :meth:`shutdown` each raises :class:`~exo.gpu.vocabulary.errors.ManagerClosed`.
    """

    def __init__(
        self,
        *,
        max_history: int = 100,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
        history: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing but an empty table; the other parts are made when first used.

        With ``history`` what is recorded is also kept on disk, unless another process of this
        machine does so already: see :attr:`recording`. Nobody waits for the disk but
        :meth:`shutdown`, and that for ten seconds at most.

        Raises:
            InvalidValue: for a history below 1 or a stale limit that is not a number of seconds.

        """
        check_whole("max_history", max_history, low=1)
        check_number("stale_after_seconds", stale_after_seconds, low=0)
        self._devices = Roster()
        self._turns = Turns()
        self._health = DeviceHealth(clock=clock, stale_after_seconds=stale_after_seconds)
        self._strangers = Strangers()
        self._collector: TelemetryCollector | None = None
        self._selector: FastSelector | None = None
        self._max_history = max_history
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock
        self._version = 0
        self._closed = False
        self._lock = threading.RLock()
        self._keeper = HistoryKeeper() if history else None
        if self._keeper is not None:
            self._keeper.open_in_background()

    async def __aenter__(self) -> Self:
        self._require_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    @property
    def recording(self) -> Recording:
        """Whether what is recorded reaches the disk now, and where; where it does not, why."""
        return NOT_WANTED if self._keeper is None else self._keeper.recording

    def register_device(self, device: GPUDevice) -> None:
        """Add a device; adding the same facts again is harmless.

        Raises:
            DuplicateDevice: for an id registered with other facts, or a card under another id.
            InvalidValue: for anything that is no GPUDevice.

        """
        with self._lock:
            self._require_open()
            if not self._devices.add(device):
                return
            self._telemetry.describe(device)
            self._health.watch(device)
            if self._keeper is not None:
                self._keeper.register(device)
            self._strangers.welcome(device.device_id)
            self._changed(device)
        logger.info("registered %s (%s)", device.device_id, device.name)

    def unregister_device(self, device_id: str) -> bool:
        """Forget a device and all that was heard of it; False where it was not registered."""
        with self._lock:
            self._require_open()
            if not self._devices.remove(device_id):
                return False
            self._telemetry.forget(device_id)
            self._health.forget(device_id)
            if self._keeper is not None:
                self._keeper.forget(device_id)
            self._version += 1
            if self._selector is not None:
                self._selector.remove(device_id)
            return True

    def get_device(self, device_id: str) -> GPUDevice | None:
        """The device registered under this id, or None."""
        with self._lock:
            self._require_open()
            return self._devices.get(device_id)

    def list_devices(self) -> list[GPUDevice]:
        """Every registered device, in the order of registration."""
        with self._lock:
            self._require_open()
            return list(self._devices.values())

    def get_capabilities(self, device_id: str) -> DeviceCapabilities:
        """What the telemetry protocol says of a device, from its real type.

        Raises:
            NoSuchDevice: for an id that is not registered.
            UnknownName: for a backend that the protocol has no type for.

        """
        device = self.get_device(device_id)
        if device is None:
            here = ", ".join(self._devices) or "none"
            raise NoSuchDevice(f"{device_id!r} is not registered (here: {here})")
        return DeviceCapabilities.of(device)

    async def record_metrics(self, metrics: GPUMetrics) -> None:
        """Keep a sample. One of an unregistered device is dropped with one warning per id.

        A loop that reads devices may race with one that unregisters them, so this is no error.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        self._require_open()
        if not isinstance(metrics, GPUMetrics):
            raise InvalidValue("metrics", metrics, "a GPUMetrics")
        if self._turns.due():
            await self._turns.give()
        with self._lock:
            self._require_open()
            if self._is_registered(metrics.device_id):
                self._take(metrics)

    async def record_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Keep a heartbeat and its sample; treated as :meth:`record_metrics` treats strangers.

        One with ``is_available=False`` keeps the device from being chosen, with its
        ``error_message`` as the reason, until a newer one says otherwise. One that was sent before
        the newest known changes nothing but the history.

        Raises:
            InvalidValue: for anything that is no Heartbeat.

        """
        self._require_open()
        if not isinstance(heartbeat, Heartbeat):
            raise InvalidValue("heartbeat", heartbeat, "a Heartbeat")
        if self._turns.due():
            await self._turns.give()
        with self._lock:
            self._require_open()
            if not self._is_registered(heartbeat.device_id):
                return
            if heartbeat.metrics is not None:
                self._observe(heartbeat.metrics)
            self._health.hear(heartbeat)
            self._changed(self._devices[heartbeat.device_id])

    def get_aggregated_metrics(self) -> dict[str, Any]:
        """Sums and means over the registered devices that were sampled; empty where none was.

        See :meth:`~exo.gpu.telemetry.collector.TelemetryCollector.get_aggregated_metrics`.
        """
        self._catch_up()
        with self._lock:
            self._require_open()
            collector = self._telemetry
        return collector.get_aggregated_metrics()

    def snapshot(self) -> Snapshot:
        """All that a choice may look at, as it is now: what ``select`` and ``explain`` take."""
        with self._lock:
            self._require_open()
            if self.node is not None:
                return self.node.snapshot()
            return Snapshot(
                devices=tuple(self._state(device) for device in self._devices.values()),
                version=self._version,
                stale_after_seconds=self._stale_after_seconds,
            )

    def select_best_device(self, min_memory_bytes: int = 0) -> str | None:
        """The best registered device with that much memory free, or None; nothing is reserved.

        Hardware comes before software drivers and the host; a busy device is taken where nothing
        better is left; stale, failed and lost ones never are.

        Raises:
            InvalidValue: for a negative ``min_memory_bytes``.

        """
        self._require_open()
        check_whole("min_memory_bytes", min_memory_bytes)
        # Whoever registered a device wants it considered: a lower class serves where no better can.
        request = Request(memory_bytes=min_memory_bytes or None, all_devices=True)
        with self._lock:
            self._require_open()
            far = self.node
            chosen = (
                far.choose(request)
                if far
                else self._table().choose(request, now=self._clock()).chosen
            )
        return chosen[0] if chosen else None

    def select(self, request: Request) -> Decision:
        """Answer a request over the registered devices, with all reasons; nothing is reserved.

        Raises:
            UnknownName: for a policy that is not known, with the near spelling.

        """
        return select(self.snapshot(), request)

    def distribute_workload(
        self,
        tasks: Iterable[Task],
        strategy: str = "uniform",
        capacities: Mapping[str, float] | None = None,
        max_per_device: Maxima = None,
        *,
        costs: Any = None,
        seconds: float | None = None,
        item_bytes: float | None = None,
    ) -> Distribution[Task]:
        """Split tasks among all registered devices, of whatever class and runtime.

        Devices that could not be chosen now (stale, failed, lost) get nothing. Without
        ``capacities`` the strategies ``capacity`` and ``dynamic`` weigh by memory bandwidth where
        every device states it, else by memory where every device states that, else equally: compute
        units are counted differently by each vendor. ``dynamic`` gives less to a device that is
        busy now. ``cost`` minimises the makespan of ``costs``: a matrix, tasks x devices in the
        order of :meth:`list_devices`, or a column for each device id; infinity is where a task does
        not fit. It works for ``seconds``, else until it has tried enough, and then it always
        answers the same. ``item_bytes`` is what is sent for each task: no node of a cluster gets
        more than the way there brings, where that was measured. What no device may take is in
        ``unassigned``.

        Raises:
            UnknownName: for another strategy.
            NoSuchDevice: for capacities, costs or maxima of a device that is not registered.
            InvalidValue: for a capacity or cost that is negative or NaN, a capacity that is
                infinite, or what the strategy has no use for.

        """
        snapshot = self.snapshot()
        terms = Terms(
            capacities=capacities,
            costs=costs,
            max_per_device=max_per_device,
            seconds=seconds,
            item_bytes=item_bytes,
            rates=self._rates() if item_bytes else {},
            clock=time.monotonic,
        )
        return distribute(snapshot, tasks, strategy, terms)

    def lease(self, **request: Any) -> AbstractAsyncContextManager[LeasedDevice]:
        """Hold the best device here, or of the cluster: ``async with manager.lease(...)``.

        Takes what :func:`exo.gpu.lease` takes, less the devices. As everywhere in the manager,
        whatever was registered is considered, of whatever class and runtime.

        Raises:
            NoSuchDevice: in the ``async with``, where none of them is a device of this machine.
            NeverAvailable: there, when none of them can ever satisfy the request.
            NotNow: there, when one could, but not at the moment, or not before ``wait`` was over.

        """
        from exo.gpu.coordination.async_leases import lease_among

        return lease_among(self.list_devices(), node=self.node, **request)

    async def shutdown(self) -> None:
        """Forget everything; every later call raises, but shutting down again is harmless.

        It returns once the history is on disk, where one is kept, or after ten seconds.
        """
        self.leave()
        with self._lock:
            self._closed = True
            self._devices = Roster()
            self._collector = None
            self._selector = None
        if self._keeper is not None:
            await on_daemon_thread(self._keeper.close, name="exo-gpu-close")

    @property
    def _telemetry(self) -> TelemetryCollector:
        if self._collector is None:
            self._collector = TelemetryCollector(
                self._max_history,
                clock=self._clock,
                max_devices=sys.maxsize,  # only registered devices get this far
                stale_after_seconds=self._stale_after_seconds,
            )
        return self._collector

    def _table(self) -> FastSelector:
        """The devices in the order of decisions: made when first asked, then kept up to date."""
        if self._selector is None:
            self._selector = FastSelector(
                map(self._state, self._devices.values()),
                now=self._clock(),
                stale_after_seconds=self._stale_after_seconds,
            )
        return self._selector

    def _changed(self, device: GPUDevice) -> None:
        self._version += 1
        if self._selector is not None:
            self._selector.update(self._state(device), now=self._clock())

    def _observe(self, metrics: GPUMetrics) -> None:
        """Keep a sample of a registered device; the health follows what is the newest of it."""
        self._telemetry.observe(metrics)
        events: list[HealthEvent] = []
        newest = self._telemetry.get_metrics(metrics.device_id)
        if newest is not None and newest.timestamp == metrics.timestamp:
            events = self._health.observe(metrics)
        if self._keeper is not None:
            for told in (metrics, *events):
                self._keeper.add(told)

    def _take(self, metrics: GPUMetrics) -> None:
        with self._lock:
            self._observe(metrics)
            self._changed(self._devices[metrics.device_id])

    def _require_open(self) -> None:
        if self._closed:
            raise ManagerClosed("this GPUClusteringManager was shut down; make a new one")

    def _is_registered(self, device_id: str) -> bool:
        return device_id in self._devices or self._strangers.refuse(device_id)

    def _state(self, device: GPUDevice) -> DeviceState:
        sample = self._telemetry.get_metrics(device.device_id)
        age = self._telemetry.age_seconds(device.device_id)
        health, reason = self._health.judge(device, sample, age)
        return DeviceState(
            device=device,
            sample=sample,
            sample_age_seconds=age,
            health=health,
            health_reason=reason,
        )
