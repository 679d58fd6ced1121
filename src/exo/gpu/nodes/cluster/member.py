"""A driver's side of one node: the session there, what was sent, and what becomes of it."""

from __future__ import annotations

import itertools
import logging
import statistics
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.cluster.far_output import FarOutput
from exo.gpu.nodes.cluster.sent_work import SentWork, endings_of
from exo.gpu.nodes.cluster.service import FORGOTTEN
from exo.gpu.nodes.cluster.wire import FUNCTIONS_KEPT, Shelf, pack_work, unpack_event
from exo.gpu.vocabulary.errors import NodeLost
from exo.gpu.vocabulary.job import (
    SlotDied,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotOutput,
    SlotRecalled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.cluster.roads import Place, Road
    from exo.gpu.vocabulary.job import SlotEvent, Work

logger = logging.getLogger("exo.gpu.nodes.cluster.member")

# An agent answers a poll within the first; one that has not answered within the second is lost.
POLL_SECONDS = 1.0
SILENCE_SECONDS = 6.0

# For a question that an agent answers at once, on a busy machine.
ANSWER_SECONDS = 15.0

# As many are enough for a median that one hiccup does not move.
_PROBES = 5


class FarSlot(msgspec.Struct):
    """A slot of another machine: who hears of it, and what it was given, in order."""

    sink: Callable[[SlotEvent], None]
    on_output: Callable[[SlotOutput], None] | None
    works: deque[SentWork]


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
        on_batch: Callable[[str, bytes], object],
        on_loss: Callable[[Member, str], None],
    ) -> None:
        """Open a session there.

        Raises:
            NodeLost: when the agent does not answer.

        """
        self.place = place
        self._road = road
        self._shelf = shelf
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
        self._thread = threading.Thread(
            target=self._listen, name=f"exo-gpu-{place.name}", daemon=True
        )

    def begin(self) -> None:
        """Tell of its devices, now that it can be asked for them, and go on doing so."""
        self._on_batch(self.name, self._first_batch)
        self._thread.start()

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
            self._road.tell("order", self._token, call, *arguments)

    def survey(self, names: tuple[str, ...]) -> None:
        """Have it measure the ways to these nodes when nobody works there."""
        if not self.lost:
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
            slot.works.append(SentWork(work.work_id, work.items, 0, len(work.items)))
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
            self._on_batch(self.name, self.ask("settle", call, *arguments))
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
        for number, slot in slots.items():
            for event in endings_of(number, slot.works, reason):
                slot.sink(event)

    def leave(self) -> None:
        """End the session with all it holds there, without telling anybody; harmless twice."""
        if not self.lost:
            self._over.set()
            self._road.tell("goodbye", self._token)

    def join(self, seconds: float) -> None:
        """Wait until nothing is asked of it any more, so long at most."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _measure(self) -> float:
        taken: list[float] = []
        for _ in range(_PROBES):
            begun = time.perf_counter()
            self._road.ask("pause", timeout_seconds=ANSWER_SECONDS)
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken)

    def _listen(self) -> None:
        try:
            while not self.lost:
                events, batch = self.ask("poll", POLL_SECONDS, timeout_seconds=SILENCE_SECONDS)
                for packed in events:
                    self._hear(packed)
                if batch is not None and not self.lost:
                    self._on_batch(self.name, batch)
        except NodeLost as error:
            self.lose(str(error))
        except Exception as error:
            # The border to another machine: whatever came from there, it is of no more use.
            logger.exception("node %s cannot be understood", self.name)
            self.lose(f"what it sent cannot be understood: {error}")

    def _hear(self, packed: tuple[Any, ...]) -> None:
        with self._lock:
            if self.lost or packed[1] not in self._slots:
                return
            slot = self._slots[packed[1]]
            event = unpack_event(packed, self._open_output)
            if isinstance(event, SlotOutput):
                if slot.on_output is not None:
                    slot.on_output(event)
                return
            _note(slot.works, event)
            slot.sink(event)

    def _open_output(self, number: int, size_bytes: int) -> FarOutput:
        return FarOutput(self, number, size_bytes)


def _note(works: deque[SentWork], event: SlotEvent) -> None:
    """Keep count of what is still open by what a slot says."""
    match event:
        case SlotOutcomes() if works:
            works[0].done += len(event.outcomes)
        case SlotRecalled():
            for work in works:
                if work.work_id == event.work_id:
                    work.ends -= len(event.items)
        case SlotIdle():
            for work in tuple(works):
                if work.work_id == event.work_id:
                    works.remove(work)
        case SlotDied() if works:
            works.popleft()
        case SlotFailed():
            works.clear()
        case _:
            pass
