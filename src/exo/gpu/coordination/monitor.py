"""The devices of a machine under watch: what is known now, what it means, and who is told."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

import msgspec

from exo.gpu.coordination.health_guard import HealthGuard
from exo.gpu.factory import FAKE_VARIABLE
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.watching import SEARCH_SECONDS
from exo.gpu.telemetry.health.book import log_event
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.telemetry.store.lock import WriterElsewhere
from exo.gpu.telemetry.store.schema import PATH_VARIABLE, history_path
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
from exo.gpu.vocabulary.inventory import DeviceChange
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from exo.gpu.nodes.watching import NodeEvent
    from exo.gpu.telemetry.collector import TelemetryCollector
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.snapshot import Snapshot

logger = logging.getLogger("exo.gpu.coordination.monitor")

# Ten minutes at one sample a second: what a sparkline and a short look back need.
HISTORY_SAMPLES = 600

# What one subscriber may leave unread: a minute of 64 devices.
MOST_UNREAD = 4096


class Recording(msgspec.Struct, frozen=True):
    """Whether samples are kept on disk, and where; ``reason`` says why not."""

    path: Path | None
    active: bool
    reason: str = ""


class Subscription:
    """Events for one reader, in order. One that reads too slowly loses the oldest, counted."""

    def __init__(self, most: int, leave: Callable[[Subscription], None]) -> None:
        """Use :meth:`Monitor.subscribe`."""
        self._leave = leave
        self._events: deque[NodeEvent] = deque(maxlen=most)
        self._changed = threading.Condition()
        self._closed = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """How many events were dropped because they were not read in time."""
        return self._lost

    def __iter__(self) -> Iterator[NodeEvent]:
        """The events as they come, until it is closed or the monitor stops."""
        while (event := self.get(timeout_seconds=None)) is not None:
            yield event

    def get(self, timeout_seconds: float | None) -> NodeEvent | None:
        """The next event; None when the time is over, or at the end of all events."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._closed, timeout_seconds)
            return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Hear of nothing more; harmless twice."""
        self._leave(self)
        self.end()

    def tell(self, event: NodeEvent) -> None:
        """Add an event; never waits for the reader."""
        with self._changed:
            self._lost += len(self._events) == self._events.maxlen
            self._events.append(event)
            self._changed.notify()

    def end(self) -> None:
        """Let the reader read what is left, and go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Monitor:
    """Watches the devices of this machine from :meth:`start` to :meth:`stop`.

    Every device is sampled at its own pace on its own thread; one that hangs touches no other.
    With ``history`` the samples are kept on disk too, unless another process does so already.
    All of it runs on daemon threads, independent of any event loop.
    """

    def __init__(
        self,
        node: LocalNode | None = None,
        *,
        cadence_seconds: float = 1.0,
        search_seconds: float = SEARCH_SECONDS,
        history: bool = False,
        max_history: int = HISTORY_SAMPLES,
    ) -> None:
        """Nothing runs yet; a ``node`` that was handed in is not closed at the end.

        Raises:
            InvalidValue: for a cadence that is too short or a history below 1.

        """
        self._node = node or LocalNode()
        self._own_node = node is None
        self._cadence_seconds = cadence_seconds
        self._search_seconds = search_seconds
        self._wants_history = history
        self._max_history = max_history
        self._subscriptions: list[Subscription] = []
        self._lock = threading.Lock()
        self._writer: HistoryWriter | None = None
        self._recording = Recording(None, active=False, reason="no history was asked for")
        self._guard = HealthGuard(self._node)
        self._started = False
        self._stopped = False

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def node(self) -> LocalNode:
        """The machine that it watches."""
        return self._node

    @property
    def recording(self) -> Recording:
        """Whether samples are kept on disk."""
        return self._recording

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the last minutes."""
        return self._node.collector

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices as the last search found them."""
        return self._node.inventory().devices

    @property
    def missing(self) -> tuple[MissingDevice, ...]:
        """Devices that were here before and were not found by the last search."""
        return self._node.inventory().missing

    def start(self) -> None:
        """Find the devices and begin; harmless twice. Waits for the search, not for samples."""
        if self._started:
            return
        self._started = True
        if self._wants_history:
            self._open_history()
        for device in self.devices:
            self._register(device)
        self._guard.start()
        self._node.watch(
            self._take,
            cadence_seconds=self._cadence_seconds,
            search_seconds=self._search_seconds,
            max_history=self._max_history,
        )

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End within about that time, whatever drivers and readers do; harmless twice."""
        if self._stopped:
            return
        self._stopped = True
        self._node.unwatch(timeout_seconds)
        self._guard.stop(timeout_seconds)
        with self._lock:
            ending, self._subscriptions = self._subscriptions, []
        for subscription in ending:
            subscription.end()
        if self._writer is not None:
            self._writer.close(timeout_seconds)
        if self._own_node:
            self._node.close()

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices as they are known now; drivers are not asked."""
        return self._node.snapshot(leases=leases)

    def subscribe(self, most: int = MOST_UNREAD) -> Subscription:
        """Hear of every event from now on; ``most`` may wait unread, the oldest is dropped first.

        Raises:
            InvalidValue: for ``most`` below 1.

        """
        check_whole("most", most, low=1)
        subscription = Subscription(most, self._drop)
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def _drop(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def _open_history(self) -> None:
        if os.environ.get(FAKE_VARIABLE) and not os.environ.get(PATH_VARIABLE):
            reason = f"scripted devices leave none, unless {PATH_VARIABLE} names a file"
            self._recording = Recording(None, active=False, reason=reason)
            return
        path = history_path(os.environ)
        try:
            opened = HistoryWriter.open(path)
        except StoreError as error:
            logger.warning("no history is kept: %s", error)
            self._recording = Recording(path, active=False, reason=str(error))
            return
        if isinstance(opened, WriterElsewhere):
            self._recording = Recording(path, active=False, reason=str(opened))
            return
        self._writer = opened
        self._recording = Recording(path, active=True)

    def _register(self, device: GPUDevice) -> None:
        if self._writer is not None:
            self._writer.register(device)

    def _take(self, event: NodeEvent) -> None:
        """One event of the node, in its turn: keep it, act on it, tell it."""
        match event:
            case Observation():
                if event.sample is not None and self._writer is not None:
                    self._writer.add(event.sample)
            case DeviceChange():
                self._register(event.device)
                logger.info("%s (%s): %s", event.device.device_id, event.device.name, event.kind)
            case HealthEvent():
                log_event(event)
                self._guard.take(event)
                if self._writer is not None:
                    self._writer.add_event(event)
            case DeviceFault():
                if self._writer is not None:
                    self._writer.add_event(event)
        with self._lock:
            readers = tuple(self._subscriptions)
        for reader in readers:
            reader.tell(event)
