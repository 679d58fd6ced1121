"""Which nodes of a cluster answer now: found, opened, lost, and opened again when they are back."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.nodes.cluster.member import Member
from exo.gpu.vocabulary.cluster import NodeStanding
from exo.gpu.vocabulary.errors import ClusterError, NodeLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.cluster.roads import Carrier, Place
    from exo.gpu.nodes.cluster.table import ClusterTable
    from exo.gpu.nodes.cluster.wire import Shelf

logger = logging.getLogger("exo.gpu.nodes.cluster.membership")

# How often the carrier is asked who is there.
LOOK_SECONDS = 1.0

# A node whose agent does not start is asked again after so long.
AGAIN_SECONDS = 3.0

# A head that is started anew is back by then. Ray itself ends this process after a minute of it:
# what is to be saved has to hear before.
HEAD_SECONDS = 20.0

HEAD_GONE = (
    f"the head of the cluster has not answered for {HEAD_SECONDS:g} s; what was done is kept by a "
    "journal, if one was asked for"
)

# An agent that hears a goodbye answers the poll of that driver at once.
LEAVE_SECONDS = 3.0

# The agents of all nodes are waited for at the start, so long.
FIRST_SECONDS = 60.0


class Membership:
    """Keeps one :class:`~exo.gpu.nodes.cluster.member.Member` for each node that answers."""

    def __init__(
        self,
        carrier: Carrier,
        table: ClusterTable,
        shelf: Shelf,
        driver: str,
    ) -> None:
        self.head_problem = ""
        """Why the cluster's head does not answer; empty while it does."""
        self.prepare: Callable[[Place], object] = lambda _: None
        """Is called, from another thread, for a node that joins, before it counts."""
        self._carrier = carrier
        self._table = table
        self._shelf = shelf
        self._driver = driver
        self._listeners: list[Callable[[], None]] = []
        self._members: dict[str, Member] = {}
        self._problems: dict[str, str] = {}
        self._opening: dict[str, float] = {}
        self._places: Sequence[Place] = ()
        self._head_heard_at = time.monotonic()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._threads: tuple[threading.Thread, ...] = ()

    def start(self) -> None:
        """Open all nodes, and go on looking; returns once each has answered or cannot.

        Raises:
            ClusterError: when no node answers.

        """
        self._look()
        ends = time.monotonic() + FIRST_SECONDS
        with self._changed:
            while any(one.name not in {*self._members, *self._problems} for one in self._places):
                if not self._changed.wait(max(0.0, ends - time.monotonic())):
                    break
            members, problems = dict(self._members), dict(self._problems)
        if not members:
            why = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
            raise ClusterError(f"no node of the cluster answers ({why or 'it has none'})")
        self._threads = tuple(
            threading.Thread(target=task, name="exo-gpu-membership", daemon=True)
            for task in (self._watch, self._guard)
        )
        for thread in self._threads:
            thread.start()

    @property
    def members(self) -> dict[str, Member]:
        """The nodes that answer, by name."""
        with self._lock:
            return dict(self._members)

    def member(self, name: str) -> Member:
        """One of them.

        Raises:
            NodeLost: for one that does not answer.

        """
        with self._lock:
            if name not in self._members:
                raise NodeLost(f"node {name!r} does not answer: {self._why(name)}")
            return self._members[name]

    @property
    def home(self) -> str:
        """The name of the node that this program's values are sent from; empty if not known."""
        key = self._carrier.here
        with self._lock:
            return next((place.name for place in self._places if key and place.key == key), "")

    def standings(self) -> tuple[NodeStanding, ...]:
        """Every node that is or was here, by name."""
        with self._lock:
            addresses = {place.name: place.address for place in self._places}
            names = sorted({*addresses, *self._members, *self._problems})
            return tuple(
                NodeStanding(
                    node=name,
                    address=addresses.get(name, ""),
                    alive=name in self._members,
                    reason="" if name in self._members else self._why(name),
                    version=self._members[name].version if name in self._members else "",
                    python=self._members[name].python if name in self._members else "",
                )
                for name in names
            )

    def close(self) -> None:
        """Leave all nodes; harmless twice. Then nobody is asked anything any more."""
        self._closed.set()
        members = self.members.values()
        for member in members:
            member.leave()
        with self._lock:
            self._members.clear()
        # What leaves the cluster next must not do so in the middle of a call.
        ends = time.monotonic() + LEAVE_SECONDS
        for one in (*members, *self._threads):
            one.join(max(0.0, ends - time.monotonic()))

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call it, from other threads, when nodes came, went or told anything; what ends that."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return stop

    def _tell(self) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def _why(self, name: str) -> str:
        return self._problems.get(name) or self.head_problem or "it is not a node of the cluster"

    def _watch(self) -> None:
        told: tuple[str, ...] = ()
        while not self._closed.wait(LOOK_SECONDS):
            self._look()
            members = self.members
            names = tuple(sorted(members))
            if names != told:
                told = names
                for member in members.values():
                    member.survey(names)

    def _guard(self) -> None:
        """Give all nodes up once the head has not answered for long, while that can be told."""
        while not self._closed.wait(LOOK_SECONDS):
            if time.monotonic() - self._head_heard_at > HEAD_SECONDS and self.members:
                self.head_problem = HEAD_GONE
                for member in self.members.values():
                    member.lose(HEAD_GONE)

    def _look(self) -> None:
        try:
            places = self._carrier.places()
        except ClusterError as error:
            if not self.head_problem:
                logger.warning("%s", error)
            self.head_problem = str(error)
            return
        self.head_problem = ""
        self._head_heard_at = time.monotonic()
        with self._lock:
            self._places = places
            here = {place.name: place for place in places}
            gone = [one for one in self._members.values() if _is_gone(one, here)]
        for member in gone:
            member.lose(f"node {member.name} left the cluster, or was found dead")
        now = time.monotonic()
        with self._lock:
            fresh = [
                place
                for place in places
                if place.name not in self._members and self._opening.get(place.name, 0.0) <= now
            ]
            for place in fresh:
                self._opening[place.name] = float("inf")
        for place in fresh:
            threading.Thread(
                target=self._open, args=(place,), name=f"exo-gpu-open-{place.name}", daemon=True
            ).start()

    def _open(self, place: Place) -> None:
        problem = ""
        try:
            self.prepare(place)
            member = Member(
                place,
                self._carrier.road(place),
                self._shelf,
                self._driver,
                fetch=self._carrier.fetch,
                on_batch=self.heard,
                on_loss=self._lost,
            )
        except ClusterError as error:
            problem = str(error)
            logger.warning("node %s: %s", place.name, error)
        else:
            with self._lock:
                if self._closed.is_set() or member.lost:
                    member.leave()
                else:
                    self._members[place.name] = member
                    self._problems.pop(place.name, None)
                    member.begin()
        with self._changed:
            if problem:
                self._problems[place.name] = problem
            self._opening[place.name] = time.monotonic() + AGAIN_SECONDS
            self._changed.notify_all()
        self._tell()

    def heard(self, member: Member, batch: bytes) -> None:
        """Take in what a node tells of its devices, unless it does not count any more."""
        with self._lock:
            new = self._members.get(member.name) is member and self._table.take(
                batch, whose=member.name
            )
        if new:
            self._tell()

    def _lost(self, member: Member, reason: str) -> None:
        logger.warning("the devices of node %s are lost: %s", member.name, reason)
        with self._lock:
            if self._members.get(member.name) is member:
                del self._members[member.name]
                self._problems[member.name] = reason
                self._opening[member.name] = time.monotonic() + LOOK_SECONDS
                self._table.forget(member.name)
        self._tell()


def _is_gone(member: Member, here: dict[str, Place]) -> bool:
    place = here.get(member.name)
    return place is None or place.key != member.place.key
