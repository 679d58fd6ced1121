"""The devices of a machine under watch: what is known now, what it means, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from exo.gpu.coordination.health_guard import HealthGuard
from exo.gpu.coordination.subscriptions import MOST_UNREAD, Announcer, Subscription
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.watching import SEARCH_SECONDS
from exo.gpu.vocabulary.health import HealthEvent

if TYPE_CHECKING:
    from exo.gpu.coordination.recording import Recording
    from exo.gpu.nodes.watching import NodeEvent
    from exo.gpu.telemetry.collector import TelemetryCollector
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.snapshot import Snapshot

# Ten minutes at one sample a second: what a sparkline and a short look back need.
HISTORY_SAMPLES = 600


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
        self._max_history = max_history
        self._announcer = Announcer(history=history)
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
        """Whether samples reach the disk now; where they do not, why."""
        return self._announcer.recording

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

    @property
    def nodes(self) -> tuple[NodeStanding, ...]:
        """None: this machine is all that is watched."""
        return ()

    @property
    def problem(self) -> str:
        """Nothing stands between it and the machine that it runs on."""
        return ""

    def start(self) -> None:
        """Find the devices and begin; harmless twice. Waits for the search, not for samples."""
        if self._started:
            return
        self._started = True
        self._announcer.open(self.devices)
        self._guard.start()
        self._node.watch(
            self._take,
            cadence_seconds=self._cadence_seconds,
            search_seconds=self._search_seconds,
            max_history=self._max_history,
        )

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End within about that time, whatever drivers and readers do; harmless twice.

        A history that is kept is written first, for which a slow disk gets five seconds.
        """
        if self._stopped:
            return
        self._stopped = True
        self._node.unwatch(timeout_seconds)
        self._guard.stop(timeout_seconds)
        self._announcer.close(timeout_seconds)
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
        return self._announcer.subscribe(most)

    def _take(self, event: NodeEvent) -> None:
        """One event of the node, in its turn: act on it, tell it."""
        if isinstance(event, HealthEvent):
            self._guard.take(event)
        self._announcer.tell(event)
