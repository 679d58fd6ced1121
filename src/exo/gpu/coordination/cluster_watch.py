"""The devices of a cluster under watch: what their agents tell, what has gone, and who hears it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from exo.gpu.coordination.cluster_reader import ClusterReader
from exo.gpu.coordination.monitor import HISTORY_SAMPLES
from exo.gpu.coordination.subscriptions import MOST_UNREAD, Announcer, Subscription
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.telemetry.health.book import NO_SAMPLE
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.vocabulary.health import Health, HealthEvent
from exo.gpu.vocabulary.inventory import ChangeKind, DeviceChange, MissingDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.recording import Recording
    from exo.gpu.coordination.watch import WatchedCluster
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

logger = logging.getLogger("exo.gpu.coordination.cluster_watch")

# Agents tell once a second, each in its own moment: however many there are, looked at this often.
LOOK_SECONDS = 0.5

# Where nobody tells anything, that is worth a look too.
IDLE_SECONDS = 1.0

# Cloud machines come with a new name each time: those gone longest are forgotten.
MOST_MISSING = 1024

UNLISTED = "its node no longer lists it"


class ClusterWatch:
    """Watches all devices of a cluster from :meth:`start` to :meth:`stop`, as agents tell of them.

    What a :class:`~exo.gpu.coordination.monitor.Monitor` tells of this machine, it tells of all of
    them, under their whole names (``rig2/cuda:0``): samples about once a second, changes of health,
    devices that come and go. Faults that a driver numbers show in the health of their device. A
    node that is lost takes its devices with it; they are missing then, with its reason. Where all
    of them are lost, as with the head, they are looked for until there is a cluster again.

    With ``history`` it is the writer of this machine's history, unless another process is. There a
    device is its hardware id and its node, so that ``rig2/cuda:0`` and what this machine watches as
    ``cuda:0`` are kept side by side; while it writes, nobody else here does.
    """

    def __init__(
        self,
        join: Callable[[Callable[[], None]], WatchedCluster] | None = None,
        *,
        history: bool = False,
        max_history: int = HISTORY_SAMPLES,
    ) -> None:
        """Join the cluster, by default the one of ``RAY_ADDRESS`` or of this machine.

        ``join`` is given what is to be called, from any thread, when there is news; without it the
        cluster is read from a process of its own, on which nothing here depends.

        Raises:
            ClusterError: where there is none, or none of its nodes answers, with what to do.

        """
        self._news = threading.Event()
        self._node = (join or ClusterReader)(self._news.set)
        self._collector = TelemetryCollector(max_history)
        self._announcer = Announcer(history=history)
        self._here: dict[tuple[str, str], DeviceState] = {}
        self._missing: dict[tuple[str, str], MissingDevice] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exo-gpu-cluster", daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def node(self) -> WatchedCluster:
        """The cluster."""
        return self._node

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the last minutes."""
        return self._collector

    @property
    def recording(self) -> Recording:
        """Whether samples reach the disk now; where they do not, why."""
        return self._announcer.recording

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices of the nodes that answer."""
        return self._node.inventory().devices

    @property
    def missing(self) -> tuple[MissingDevice, ...]:
        """Devices that were seen since the start and are not there now."""
        return tuple(self._missing.values())

    @property
    def nodes(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was in the cluster, and why one does not count."""
        return self._node.nodes()

    @property
    def problem(self) -> str:
        """Why the cluster, or its head, does not answer; empty while it does."""
        return self._node.problem

    def start(self) -> None:
        """Begin with the devices that are there now, of whose coming nothing is told."""
        states = self._node.snapshot(leases=False).devices
        self._announcer.open(state.device for state in states)
        for state in states:
            self._here[_who(state.device)] = state
            self._hear(None, state)
        self._thread.start()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End within about that time, and leave the cluster; harmless twice.

        A history that is kept is written first, for which a slow disk gets five seconds.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        self._announcer.close(timeout_seconds)
        self._node.close()

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices as their agents last told; nobody is asked."""
        return self._node.snapshot(leases=leases)

    def subscribe(self, most: int = MOST_UNREAD) -> Subscription:
        """Hear of every event from now on; ``most`` may wait unread, the oldest is dropped first.

        Raises:
            InvalidValue: for ``most`` below 1.

        """
        return self._announcer.subscribe(most)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._news.wait(IDLE_SECONDS)
            self._news.clear()
            self._look()

    def _look(self) -> None:
        """Tell what is new since the last time."""
        here = {_who(one.device): one for one in self._node.snapshot(leases=False).devices}
        before, self._here = self._here, here
        gone = {who: state for who, state in before.items() if who not in here}
        if gone or self._missing:
            self._account({**self._missing, **gone}.keys() - here.keys(), gone)
        for who, state in here.items():
            known = before.get(who)
            if known is None:
                self._came(state, self._missing.pop(who, None))
            else:
                self._judge(state, known.health, known.health_reason)
            self._hear(known, state)

    def _account(
        self, missing: set[tuple[str, str]], gone: dict[tuple[str, str], DeviceState]
    ) -> None:
        """Say why devices are not there, and tell of those that were until now."""
        standings = {one.node: one for one in self._node.nodes()}
        now = time.time()
        for who, state in gone.items():
            age = state.sample_age_seconds or 0.0
            self._missing[who] = MissingDevice(device=state.device, last_seen=now - age, reason="")
        for who in missing:
            entry = self._missing[who]
            reason = _why(standings.get(entry.device.node), self.problem)
            self._missing[who] = MissingDevice(
                device=entry.device, last_seen=entry.last_seen, reason=reason
            )
        for who, state in gone.items():
            self._announcer.tell(DeviceChange(kind=ChangeKind.LOST, device=state.device))
            self._turned(state, state.health, Health.LOST, self._missing[who].reason)
        while len(self._missing) > MOST_MISSING:
            del self._missing[next(iter(self._missing))]

    def _came(self, state: DeviceState, missing: MissingDevice | None) -> None:
        kind = ChangeKind.ADDED if missing is None else ChangeKind.RETURNED
        self._announcer.tell(DeviceChange(kind=kind, device=state.device))
        if missing is None:
            self._judge(state, Health.OK, "")
        else:
            self._judge(state, Health.LOST, missing.reason)

    def _judge(self, state: DeviceState, before: Health, reason: str) -> None:
        """Tell of another health than before, or of other reasons for it."""
        if before is not state.health or _told(reason) != _told(state.health_reason):
            self._turned(state, before, state.health, _told(state.health_reason))

    def _turned(self, state: DeviceState, before: Health, after: Health, reason: str) -> None:
        self._announcer.tell(
            HealthEvent(
                device_id=state.device.device_id,
                before=before,
                after=after,
                reasons=(reason,) if reason else (),
                at=time.time(),
            )
        )

    def _hear(self, before: DeviceState | None, state: DeviceState) -> None:
        """Take a sample in that is new; of a device that gives none, say why."""
        device_id, sample, failure = state.device.device_id, state.sample, ""
        if sample is None:
            failure = _told(state.health_reason)
            if not failure:
                return
        elif _time_of(before) == sample.timestamp:
            return
        else:
            self._collector.observe(sample)
        self._announcer.tell(
            Observation(device_id, sample, failure, hanging=False, received_at=time.monotonic())
        )


def _who(device: GPUDevice) -> tuple[str, str]:
    """What is one device for as long as it is watched: one name, on one piece of hardware."""
    return device.device_id, device.hardware_id


def _time_of(state: DeviceState | None) -> float | None:
    """When the newest sample was taken."""
    return None if state is None or state.sample is None else state.sample.timestamp


def _told(reason: str) -> str:
    """The reason behind a health, less what is none."""
    return "" if reason == NO_SAMPLE else reason


def _why(standing: NodeStanding | None, problem: str) -> str:
    if standing is not None and standing.alive:
        return UNLISTED
    known = "" if standing is None else standing.reason
    return f"its node is lost: {known or problem or 'it left the cluster'}"
