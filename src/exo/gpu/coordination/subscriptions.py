"""Who hears what a watch tells: every subscriber at its own pace, and the history on disk."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from exo.gpu.coordination.recording import NOT_WANTED, HistoryKeeper, Recording
from exo.gpu.telemetry.health.book import log_event
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
from exo.gpu.vocabulary.inventory import DeviceChange
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from exo.gpu.nodes.watching import NodeEvent
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics

logger = logging.getLogger("exo.gpu.coordination.subscriptions")

# What one subscriber may leave unread: a minute of 64 devices.
MOST_UNREAD = 4096

# A disk that is merely slow loses nothing; one that hangs keeps nobody longer.
_DISK_SECONDS = 5.0


class Subscription:
    """Events for one reader, in order. One that reads too slowly loses the oldest, counted."""

    def __init__(self, most: int, leave: Callable[[Subscription], None]) -> None:
        """Use :meth:`Announcer.subscribe`."""
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
        """The events as they come, until it is closed or the watch stops."""
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


class Announcer:
    """Hands each event to the log, to the history where one is wanted, and to all subscribers."""

    def __init__(self, *, history: bool) -> None:
        """Nothing is opened yet."""
        self._keeper = HistoryKeeper() if history else None
        self._subscriptions: list[Subscription] = []
        self._lock = threading.Lock()

    @property
    def recording(self) -> Recording:
        """Whether samples reach the disk now; where they do not, why."""
        return NOT_WANTED if self._keeper is None else self._keeper.recording

    def open(self, devices: Iterable[GPUDevice]) -> None:
        """Begin the history, if one is wanted, with the devices that are here; waits for it."""
        if self._keeper is not None:
            self._keeper.open()
            for device in devices:
                self._keeper.register(device)

    def close(self, timeout_seconds: float) -> None:
        """End all subscriptions; a history is written first, for which it gets five seconds."""
        with self._lock:
            ending, self._subscriptions = self._subscriptions, []
        for subscription in ending:
            subscription.end()
        if self._keeper is not None:
            self._keeper.close(max(timeout_seconds, _DISK_SECONDS))

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

    def tell(self, event: NodeEvent) -> None:
        """One event, in its turn: log it, keep it, tell it."""
        match event:
            case Observation():
                self._keep(event.sample)
            case DeviceChange():
                if self._keeper is not None:
                    self._keeper.register(event.device)
                logger.info("%s (%s): %s", event.device.device_id, event.device.name, event.kind)
            case HealthEvent():
                log_event(event)
                self._keep(event)
            case DeviceFault():
                self._keep(event)
        with self._lock:
            readers = tuple(self._subscriptions)
        for reader in readers:
            reader.tell(event)

    def _drop(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def _keep(self, told: GPUMetrics | HealthEvent | DeviceFault | None) -> None:
        if self._keeper is not None and told is not None:
            self._keeper.add(told)
