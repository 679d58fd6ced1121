"""What an agent serves to the drivers of a cluster; the carrier calls it from many threads."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.agent import NodeAgent
from exo.gpu.nodes.cluster.batches import BatchMaker
from exo.gpu.nodes.cluster.session import Session
from exo.gpu.nodes.cluster.survey import Surveyor
from exo.gpu.vocabulary.errors import ExoGpuError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.nodes.cluster.roads import Road
    from exo.gpu.nodes.transport import Grant
    from exo.gpu.vocabulary.cluster import NodeBatch
    from exo.gpu.vocabulary.links import Route
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.nodes.cluster.service")

# A driver that has not called for so long is gone, or as good as gone: its leases and runners end.
DRIVER_SECONDS = 10.0

# Devices are sampled and told of as often.
CADENCE_SECONDS = 1.0

_SEARCH_SECONDS = 30.0

# An order that takes longer, such as to end a process that hangs in a driver, goes on by itself.
SETTLE_SECONDS = 12.0

FORGOTTEN = "forgotten"
"""Answers a call under a session that has ended."""

_ASKED = ("leases", "line", "end_lease", "processes", "environment", "read_output")


class AgentService:
    """The agent of one node, in a process of its own.

    ``version`` is what this process runs; ``fetch`` gets what was put into the object store.
    """

    def __init__(
        self,
        node: str,
        version: str,
        fetch: Callable[[Any], Any],
        environ: Mapping[str, str] | None = None,
        *,
        reach: Callable[[str], Road] | None = None,
        put: Callable[[Any], Any] | None = None,
    ) -> None:
        """``reach`` gives the way to another node's agent, to measure it.

        ``put`` puts a large result into the object store, from where its driver fetches it.
        """
        self._put = put
        self.node = node
        self._surveyor = None if reach is None else Surveyor(node, reach, self.is_busy)
        self._version = version
        self._fetch = fetch
        self._agent = NodeAgent(os.environ if environ is None else environ)
        self._batches = BatchMaker(node)
        self._sessions: dict[str, Session] = {}
        self._left_at = time.monotonic()
        self._granting = threading.Lock()
        self._turn = threading.Lock()  # between those who look at the devices
        self._door = threading.Lock()  # to the sessions
        self._closed = threading.Event()
        self._agent.sight.watch(
            lambda _: None,
            cadence_seconds=CADENCE_SECONDS,
            search_seconds=_SEARCH_SECONDS,
            max_history=1,
        )
        threading.Thread(target=self._tend, name="exo-gpu-agent", daemon=True).start()

    def hello(self, driver: str) -> dict[str, Any]:
        """Begin a session; one that the same driver had before ends with all it held."""
        for session in self._of(driver):
            self._end(session)
        session = Session(driver, self._agent, self._fetch, self._put)
        with self._door:
            self._sessions[session.token] = session
        return {
            "token": session.token,
            "version": self._version,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "batch": self._look(),
        }

    def goodbye(self, token: str) -> None:
        """End a session with all it holds; harmless twice."""
        session = self._sessions.get(token)
        if session is not None:
            self._end(session)

    def poll(
        self, token: str, seconds: float, only_pulse: bool
    ) -> tuple[list[tuple[Any, ...]], bytes | None] | str:
        """What a driver has to hear, as soon as there is anything, and the newest batch.

        With ``only_pulse`` it wants to hear nothing now, but says that it is there. The batch is
        left out where the last answer had it. A driver that no session here knows is told so.
        """
        session = self._sessions.get(token)
        if session is None:
            return FORGOTTEN
        events = session.wait(seconds, only_pulse=only_pulse)
        if session.ended:
            return FORGOTTEN
        newest = self._batches.newest
        if newest is None or newest.number == session.told_number:
            return events, None
        batch = newest
        if session.told_change == newest.changed_number:
            batch = msgspec.structs.replace(
                newest, states=None, remarks=(), links=(), unseen=(), routes=()
            )
        session.told_number, session.told_change = newest.number, newest.changed_number
        return events, msgspec.msgpack.encode(batch)

    def acquire(
        self,
        token: str,
        number: int,
        request: Request,
        wait_seconds: float | None,
        lasts_seconds: float | None,
    ) -> tuple[Grant, bytes] | str:
        """Grant a proposal by a transaction on the node's own store, or refuse; and what is now.

        Where the answer does not arrive, the driver disowns the ``number``.
        """
        session = self._sessions.get(token)
        if session is None:
            return FORGOTTEN
        with self._granting:  # not the turn of those who look: it may wait for memory
            grant = self._agent.acquire(
                request, wait_seconds=wait_seconds, lasts_seconds=lasts_seconds
            )
        session.took(number, grant.lease_ids)
        return grant, self._look()

    def look(self, token: str) -> bytes | str:
        """The devices as they are now."""
        session = self._sessions.get(token)
        return FORGOTTEN if session is None else self._look()

    def order(self, token: str, call: str, *arguments: Any) -> None:
        """Have something done, in the order of these calls."""
        session = self._sessions.get(token)
        if session is not None:
            session.order(call, arguments)

    def settle(self, token: str, call: str, *arguments: Any) -> bytes | str:
        """The same, answered once it is done by the devices as they are then."""
        session = self._sessions.get(token)
        if session is None:
            return FORGOTTEN
        session.settle(call, arguments, SETTLE_SECONDS)
        return self._look()

    def answer(self, token: str, call: str, *arguments: Any) -> Any:
        """Answer a question about the node."""
        session = self._sessions.get(token)
        if session is None:
            return FORGOTTEN
        if call not in _ASKED:
            raise ExoGpuError(f"an agent has no answer to {call!r}")
        if call == "read_output":
            return session.read_output(*arguments)
        if call in ("leases", "line", "end_lease"):
            return self._of_desk(call, *arguments)
        return getattr(self._agent, call)(*arguments)

    def pause(self) -> float:
        """Nothing at all: how long an answer takes is what is measured by it."""
        return time.time()

    def take_bytes(self, payload: Any) -> int:
        """How many bytes arrived, for a measurement of the way here."""
        return len(payload)

    def is_busy(self) -> bool:
        """Whether any driver has a slot here: then nothing is measured."""
        return any(session.has_slots for session in tuple(self._sessions.values()))

    @property
    def idle_seconds(self) -> float:
        """For how long no driver has been here."""
        return 0.0 if self._sessions else time.monotonic() - self._left_at

    def survey(self, targets: tuple[str, ...]) -> None:
        """Learn of other nodes: how fast they are reached is measured once nobody works here."""
        if self._surveyor is not None:
            self._surveyor.aim(targets)

    def routes(self, token: str, targets: tuple[str, ...]) -> tuple[Route, ...] | str:
        """How fast other nodes are reached from here: measured now where that is long ago.

        While anybody works here or there, what was measured last is all there is.
        """
        if token not in self._sessions:
            return FORGOTTEN
        return () if self._surveyor is None else self._surveyor.routes(targets)

    def close(self) -> None:
        """End every session and let go of the devices; harmless twice."""
        self._closed.set()
        if self._surveyor is not None:
            self._surveyor.close()
        for session in tuple(self._sessions.values()):
            self._end(session)
        self._agent.close()

    def _of_desk(self, call: str, *arguments: Any) -> Any:
        with self._turn:
            if call == "leases":
                return self._agent.desk.report()
            if call == "line":
                return self._agent.desk.line()
            name, force = arguments
            return self._agent.desk.end(name, force=force)

    def _of(self, driver: str) -> list[Session]:
        return [one for one in tuple(self._sessions.values()) if one.driver == driver]

    def _end(self, session: Session) -> None:
        with self._door:
            self._left_at = time.monotonic()
            self._sessions.pop(session.token, None)
        session.end()

    def _look(self) -> bytes:
        """A whole batch, made now."""
        return msgspec.msgpack.encode(self._make())

    def _make(self) -> NodeBatch:
        with self._turn:
            try:
                snapshot = self._agent.snapshot()
            except StoreError as error:
                logger.warning("leases and cordons are not told: %s", error)
                snapshot = self._agent.snapshot(leases=False)
            return self._batches.make(snapshot, self._surveyor.known if self._surveyor else ())

    def _tend(self) -> None:
        """Make a batch each second, and end the sessions of drivers that are gone."""
        while not self._closed.wait(CADENCE_SECONDS):
            now = time.monotonic()
            for session in tuple(self._sessions.values()):
                if now - session.heard_at > DRIVER_SECONDS:
                    logger.warning("a driver is gone: what it held here ends (%s)", session.driver)
                    self._end(session)
            if self._sessions:
                try:
                    self._make()
                except Exception:
                    # The border to whatever devices do: the next second may be better.
                    logger.exception("the devices of this node cannot be told of")
