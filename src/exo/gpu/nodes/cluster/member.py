"""A driver's side of one node: the session there, what was sent, and what becomes of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import statistics
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.cluster.far_output import brought
from exo.gpu.nodes.cluster.sent_work import SentWork, endings_of, note
from exo.gpu.nodes.cluster.service import FORGOTTEN
from exo.gpu.nodes.cluster.wire import FUNCTIONS_KEPT, Shelf, pack_work, unpack_event
from exo.gpu.vocabulary.errors import NodeLost
from exo.gpu.vocabulary.job import SlotFailed, SlotOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from exo.gpu.execution.command import OutputFile
    from exo.gpu.nodes.cluster.roads import Place, Road
    from exo.gpu.vocabulary.job import SlotEvent, Work

logger = logging.getLogger("exo.gpu.nodes.cluster.member")

# An agent answers a poll within the first; one that has not answered within the second is lost.
POLL_SECONDS = 1.0
SILENCE_SECONDS = 6.0

# Answers of that many polls wait for whoever hears them; then no more are asked for.
MOST_UNHEARD = 4

# For a question that an agent answers at once, on a busy machine.
ANSWER_SECONDS = 15.0

# As many are enough for a median that one hiccup does not move.
_PROBES = 5


class FarSlot(msgspec.Struct):
    """A slot of another machine: who hears of it, and what it was given, in order."""

    sink: Callable[[SlotEvent], None]
    on_output: Callable[[SlotOutput], None] | None
    works: deque[SentWork]
    failed: bool = False
    """It was given up, and that was told."""


class Member:
    """One node while it answers. All it ever said counts until :meth:`lose`, and nothing after.

    ``on_batch`` hears of its devices, ``on_loss`` once of its end.
    """

    def __init__(
        self,
        place: Place,
        road: Road,
        shelf: Shelf,
        driver: str,
        *,
        fetch: Callable[[Any], Any],
        on_batch: Callable[[Member, bytes], object],
        on_loss: Callable[[Member, str], None],
    ) -> None:
        """Open a session there.

        Raises:
            NodeLost: when the agent does not answer.

        """
        self.place = place
        self._road = road
        self._shelf = shelf
        self._fetch = fetch
        self._on_batch = on_batch
        self._on_loss = on_loss
        self._slots: dict[int, FarSlot] = {}
        # By the id of its payload, which is held so that no other can have it: callers count anew.
        self._functions: OrderedDict[int, tuple[int, Any]] = OrderedDict()
        self._function_numbers = itertools.count()
        self._lock = threading.RLock()
        self._over = threading.Event()
        facts: dict[str, Any] = road.ask("hello", driver, timeout_seconds=ANSWER_SECONDS)
        self._token: str = facts["token"]
        self.version: str = facts["version"]
        self.python: str = facts["python"]
        self.pid: int = facts["pid"]
        """Of the agent's process, on its machine."""
        self._first_batch: bytes = facts["batch"]
        self.latency_seconds = self._measure()
        """There and back with nothing to do, as it was at first."""
        self._unheard: queue.SimpleQueue[list[tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._threads = tuple(
            threading.Thread(target=task, name=f"exo-gpu-{place.name}", daemon=True)
            for task in (self._listen, self._hear_all)
        )

    def begin(self) -> None:
        """Tell of its devices, now that it can be asked for them, and go on doing so."""
        self._on_batch(self, self._first_batch)
        for thread in self._threads:
            thread.start()

    @property
    def name(self) -> str:
        """What the node is called."""
        return self.place.name

    @property
    def lost(self) -> bool:
        """Whether it was lost, or left."""
        return self._over.is_set()

    def ask(self, call: str, *arguments: Any, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        """Have the agent's service answer under this session.

        Raises:
            NodeLost: when it does not, or knows nothing of us any more.

        """
        if self.lost:
            raise NodeLost(f"node {self.name} is lost")
        answer = self._road.ask(call, self._token, *arguments, timeout_seconds=timeout_seconds)
        if isinstance(answer, str) and answer == FORGOTTEN:
            raise NodeLost(f"node {self.name} was started anew, or took us for gone")
        return answer

    def order(self, call: str, *arguments: Any) -> None:
        """Have something done in the order of these calls; nothing is heard of it here."""
        if not self.lost:
            try:
                self._road.tell("order", self._token, call, *arguments)
            except NodeLost as error:
                # Not here: whoever orders may hold what the losing needs.
                threading.Thread(target=self.lose, args=(str(error),), daemon=True).start()

    def survey(self, names: tuple[str, ...]) -> None:
        """Have it measure the ways to these nodes when nobody works there."""
        with contextlib.suppress(NodeLost):
            self._road.tell("survey", names)

    def open_slot(self, number: int, slot: FarSlot, *arguments: Any) -> None:
        """Start a slot under a lease.

        Raises:
            NodeLost: when the node was lost meanwhile.

        """
        with self._lock:
            if self.lost:
                raise NodeLost(f"node {self.name} is lost")
            self._slots[number] = slot
            self.order("open_slot", number, *arguments, slot.on_output is not None)

    def submit(self, number: int, work: Work) -> None:
        """Give a slot its next work; where it is lost already, that was told and this is dropped.

        Whoever gave it has the loss of the slot still to hear, and takes it back then.
        """
        with self._lock:
            slot = self._slots.get(number)
            if slot is None:
                return
            slot.works.append(SentWork(work.work_id, work.items))
            fresh = False
            if work.function is not None:
                fresh, function = self._function(work.function_payload)
                work = msgspec.structs.replace(work, function=function)
            packed = pack_work(work, self._shelf.take, with_function=fresh)
            self.order("submit", number, packed)

    def _function(self, payload: Any) -> tuple[bool, int]:
        """Whether the agent does not have a function yet, and its number there."""
        fresh = id(payload) not in self._functions
        if fresh:
            self._functions[id(payload)] = (next(self._function_numbers), payload)
            if len(self._functions) > FUNCTIONS_KEPT:
                self._functions.popitem(last=False)
        self._functions.move_to_end(id(payload))
        return fresh, self._functions[id(payload)][0]

    def settle(self, call: str, *arguments: Any) -> None:
        """Have something done and wait for it; harmless where the node is lost."""
        try:
            self._on_batch(self, self.ask("settle", call, *arguments))
        except NodeLost as error:
            logger.debug("%s: %s", call, error)

    def close_slots(self, numbers: tuple[int, ...], *, kill: bool) -> None:
        """End slots and wait for that; harmless for those that are gone."""
        with self._lock:
            mine = tuple(number for number in numbers if self._slots.pop(number, None))
        if mine:
            self.settle("close_slots", mine, kill)

    def lose(self, reason: str) -> None:
        """It counts no more: what it had not reported is told to be open; harmless twice."""
        with self._lock:
            if self.lost:
                return
            self._over.set()
            slots, self._slots = self._slots, {}
        # First, so that whoever hears of a lost slot knows that its device is gone.
        self._on_loss(self, reason)
        self._end(slots, reason)

    def leave(self) -> None:
        """End the session with all it holds there; what is open then is told; harmless twice."""
        with self._lock:
            if self.lost:
                return
            self._over.set()
            slots, self._slots = self._slots, {}
        with contextlib.suppress(NodeLost):
            self._road.tell("goodbye", self._token)
        self._end(slots, f"the cluster was left, and node {self.name} with it")

    def _end(self, slots: dict[int, FarSlot], reason: str) -> None:
        for number, slot in slots.items():
            if not slot.failed:
                for event in endings_of(number, slot.works, reason):
                    slot.sink(event)

    def join(self, seconds: float) -> None:
        """Wait until nothing is asked of it any more, so long at most."""
        ends = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, ends - time.monotonic()))

    def _measure(self) -> float:
        taken: list[float] = []
        for _ in range(_PROBES):
            begun = time.perf_counter()
            self._road.ask("pause", timeout_seconds=ANSWER_SECONDS)
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken)

    def _listen(self) -> None:
        """Poll, which also says that we are here: nothing that takes time is done in between."""
        with self._border():
            while not self.lost:
                events, batch = self.ask(
                    "poll",
                    POLL_SECONDS,
                    self._unheard.qsize() >= MOST_UNHEARD,
                    timeout_seconds=SILENCE_SECONDS,
                )
                if events:
                    self._unheard.put(events)
                if batch is not None:
                    self._on_batch(self, batch)

    def _hear_all(self) -> None:
        with self._border():
            while (events := self._unheard.get()) is not None:
                for packed in events:
                    self._hear(packed)

    @contextlib.contextmanager
    def _border(self) -> Generator[None]:
        try:
            yield
        except NodeLost as error:
            self.lose(str(error))
        except Exception as error:
            # The border to another machine: whatever came from there, it is of no more use.
            logger.exception("node %s cannot be understood", self.name)
            self.lose(f"what it sent cannot be understood: {error}")
        finally:
            self._unheard.put(None)

    def _hear(self, packed: tuple[Any, ...]) -> None:
        slot = self._slots.get(packed[1])
        if slot is None:
            return
        # What is large is fetched here, and only then does it count as told.
        event = unpack_event(packed, self._bring, self._fetch)
        if isinstance(event, SlotOutput):
            if slot.on_output is not None:
                slot.on_output(event)
            return
        with self._lock:
            if self._slots.get(packed[1]) is slot and not slot.failed:
                note(slot.works, event)
                slot.failed = isinstance(event, SlotFailed)
                slot.sink(event)

    def _bring(self, number: int, size_bytes: int) -> OutputFile:
        return brought(self, number, size_bytes)
