"""One driver at one agent: its leases and slots, its commands in order, and what it has to hear."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.cluster.wire import (
    FUNCTIONS_KEPT,
    pack_event,
    sender,
    size_of_event,
    unpack_work,
)
from exo.gpu.vocabulary.errors import ExoGpuError
from exo.gpu.vocabulary.job import SlotFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.agent import NodeAgent
    from exo.gpu.vocabulary.job import HeldOutput, SlotEvent, SlotOutput, SlotSetup
    from exo.gpu.vocabulary.parcel import Parcel

logger = logging.getLogger("exo.gpu.nodes.cluster.session")

# More than that goes with the next answer, which has to arrive in time.
EVENTS_AT_ONCE = 1000
BYTES_AT_ONCE = 2 * 1024 * 1024

# Proposals whose answers may still turn out to have been lost.
GRANTS_KEPT = 1000


class Session:
    """Holds what one driver has here until :meth:`end`, which nothing of it outlives.

    ``fetch`` gets a large value that was put into the object store.
    """

    def __init__(
        self,
        driver: str,
        agent: NodeAgent,
        fetch: Callable[[Any], Any],
        put: Callable[[Any], Any] | None = None,
    ) -> None:
        self.driver = driver
        self.token = secrets.token_hex(16)
        self.heard_at = time.monotonic()
        self.told_number = self.told_change = -1
        """The batch that it was told last, and the one whose seldom changing part it has."""
        self._agent = agent
        self._fetch = fetch
        self._take = sender(put)
        self._leases: set[str] = set()
        self._grants: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._disowned: set[int] = set()
        self._slots: dict[int, int] = {}
        self._functions: OrderedDict[int, Parcel] = OrderedDict()
        self._held: dict[int, HeldOutput] = {}
        self._events: deque[tuple[Any, ...]] = deque()
        self._news = threading.Condition()
        self._orders: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.ended = False
        threading.Thread(target=self._obey, name="exo-gpu-session", daemon=True).start()

    @property
    def has_slots(self) -> bool:
        """Whether anything of this driver runs here."""
        return bool(self._slots)

    def wait(self, seconds: float, *, only_pulse: bool) -> list[tuple[Any, ...]]:
        """What happened since the last call, as soon as anything has, or nothing by then.

        With ``only_pulse`` nothing is handed out: the driver has enough, and says that it lives.
        """
        self.heard_at = time.monotonic()
        found: list[tuple[Any, ...]] = []
        with self._news:
            if only_pulse or (not self._events and not self.ended):
                self._news.wait_for(
                    lambda: self.ended or (self._events and not only_pulse), seconds
                )
            size = 0
            while self._events and not only_pulse:
                found.append(self._events.popleft())
                size += size_of_event(found[-1])
                if len(found) == EVENTS_AT_ONCE or size > BYTES_AT_ONCE:
                    break
        self.heard_at = time.monotonic()
        return found

    def took(self, number: int, lease_ids: tuple[str, ...]) -> None:
        """The driver holds the leases of a proposal, unless it has ended or given that up."""
        with self._lock:
            if not self.ended and number not in self._disowned:
                self._leases.update(lease_ids)
                self._grants[number] = lease_ids
                while len(self._grants) > GRANTS_KEPT:
                    self._grants.popitem(last=False)
                return
        for lease_id in lease_ids:
            self._agent.release(lease_id)

    def order(self, call: str, arguments: tuple[Any, ...]) -> None:
        """Do as told, after all that was told before; returns at once."""
        self._orders.put((call, arguments))

    def settle(self, call: str, arguments: tuple[Any, ...], seconds: float) -> None:
        """The same, and wait until it is done, so long."""
        done = threading.Event()
        self._orders.put((call, arguments))
        self._orders.put(("mark", (done,)))
        done.wait(seconds)

    def read_output(self, number: int, offset: int, count: int) -> bytes:
        """A part of a command's long output."""
        return self._held[number].read(offset, count)

    def end(self) -> None:
        """End its slots at once and let go of its leases; harmless twice."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            slots, leases = tuple(self._slots.values()), tuple(self._leases)
        self._orders.put(None)
        with self._news:
            self._news.notify_all()
        self._agent.slots.close(slots, kill=True)
        for lease_id in leases:
            self._agent.release(lease_id)
        for number in tuple(self._held):
            self._close_output(number)

    def _obey(self) -> None:
        while (order := self._orders.get()) is not None:
            call, arguments = order
            try:
                getattr(self, f"_{call}")(*arguments)
            except Exception as error:
                # The border to another machine: whatever it sends costs this order alone.
                logger.exception("a driver's %r cannot be carried out", call)
                if call == "submit":
                    # What went before may have been lost with it: its slot is of no more use.
                    self._tell(
                        SlotFailed(arguments[0], f"work cannot be taken: {error}"), arguments[0]
                    )

    # The orders, each called from the session's own thread.

    def _mark(self, done: threading.Event) -> None:
        done.set()

    def _disown(self, number: int) -> None:
        """The answer to a proposal never arrived: what it was granted is nobody's."""
        with self._lock:
            lease_ids = self._grants.pop(number, None)
            if lease_ids is None:
                self._disowned.add(number)
        for lease_id in lease_ids or ():
            self._release(lease_id)

    def _release(self, lease_id: str) -> None:
        self._leases.discard(lease_id)
        self._agent.release(lease_id)

    def _open_slot(
        self, number: int, lease_id: str, setup: SlotSetup | None, surroundings: Any, tells: bool
    ) -> None:
        def sink(event: SlotEvent | SlotOutput) -> None:
            self._tell(event, number)

        try:
            if self.ended:
                return
            slot = self._agent.open_slot(
                lease_id, setup, sink, sink if tells else None, surroundings=surroundings
            )
        except (ExoGpuError, OSError, KeyError) as error:
            self._tell(SlotFailed(number, f"the slot cannot be opened: {error}"), number)
            return
        with self._lock:
            self._slots[number] = slot
            late = self.ended
        if late:
            self._agent.slots.close((slot,), kill=True)

    def _submit(self, number: int, packed: tuple[Any, ...]) -> None:
        work, function = unpack_work(packed, self._fetch)
        if function is not None and work.function is not None:
            self._functions[work.function] = function
            while len(self._functions) > FUNCTIONS_KEPT:
                self._functions.popitem(last=False)
        if work.function is not None:
            self._functions.move_to_end(work.function)
            payload = self._functions[work.function]
            work = msgspec.structs.replace(work, function_payload=payload)
        slot = self._slots.get(number)
        if slot is not None:
            self._agent.slots.submit(slot, work)

    def _cancel(self, number: int, work_id: int, item: int | None) -> None:
        if number in self._slots:
            self._agent.slots.cancel(self._slots[number], work_id, item)

    def _recall(self, number: int, work_id: int) -> None:
        if number in self._slots:
            self._agent.slots.recall(self._slots[number], work_id)

    def _allow(self, number: int, work_id: int, count: int) -> None:
        if number in self._slots:
            self._agent.slots.allow(self._slots[number], work_id, count)

    def _close_slots(self, numbers: tuple[int, ...], kill: bool) -> None:
        with self._lock:
            slots = tuple(self._slots.pop(one) for one in numbers if one in self._slots)
        # Nobody else's orders wait, but this driver's next ones do: as they would on one machine.
        self._agent.slots.close(slots, kill=kill)

    def _close_output(self, number: int) -> None:
        held = self._held.pop(number, None)
        if held is not None:
            held.close()

    def _tell(self, event: SlotEvent | SlotOutput, number: int) -> None:
        packed = pack_event(event, number, self._hold, self._take)
        with self._news:
            self._events.append(packed)
            self._news.notify_all()

    def _hold(self, output: HeldOutput) -> int:
        self._held[id(output)] = output
        return id(output)
