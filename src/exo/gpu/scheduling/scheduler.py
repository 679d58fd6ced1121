"""Pull-based dispatch: which slot takes how many items next, and what becomes of a dead one's."""

from __future__ import annotations

import math
from collections import deque

import msgspec

from exo.gpu.scheduling.retry import try_again

# Long enough that dispatch (about 0.3 ms a chunk) is lost in it, short enough to balance with.
CHUNK_SECONDS = 0.1

# A chunk at most doubles, so that one lucky short item does not buy a slot a long one.
GROWTH = 2

# Weight of the newest chunk in a slot's estimate of the seconds that an item takes.
SMOOTHING = 0.5


class Take(msgspec.Struct, frozen=True):
    """The items that a slot takes now: from the dead ones' (``items``), or ``fresh`` new ones."""

    items: tuple[int, ...] = ()
    fresh: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """Of a dead slot's unfinished items: which wait for another try, which are given up."""

    again: tuple[int, ...]
    given_up: tuple[int, ...]


class _Slot:
    __slots__ = ("chunk", "seconds_per_item")

    def __init__(self) -> None:
        self.chunk = 0
        self.seconds_per_item: float | None = None


class PullScheduler:
    """Items go to whichever slot is free, so that a fast device does more of them.

    A slot's chunk is what it does in :data:`CHUNK_SECONDS` by its own measured speed, never more
    than its share of half of what is left, weighted by speed (factoring, Hummel et al. 1992), so
    that no slot sits on a long chunk while the others are done. An item whose process died goes
    first, alone, and is given up after ``max_attempts`` deaths.
    """

    def __init__(self, *, max_attempts: int = 3) -> None:
        self._max_attempts = max_attempts
        self._slots: dict[int, _Slot] = {}
        self._dead: deque[int] = deque()
        self._deaths: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """How many items of dead slots wait for another try."""
        return len(self._dead)

    def open_slot(self, slot_id: int) -> None:
        """A slot can take work."""
        self._slots.setdefault(slot_id, _Slot())

    def close_slot(self, slot_id: int) -> None:
        """A slot is gone for good."""
        self._slots.pop(slot_id, None)

    def take(self, slot_id: int, available: int) -> Take:
        """What the free slot takes now, of ``available`` fresh items; empty when nothing waits."""
        if self._dead:
            return Take(items=(self._dead.popleft(),))
        slot = self._slots[slot_id]
        slot.chunk = min(self._chunk(slot, available), available)
        return Take(fresh=slot.chunk)

    def finished(self, slot_id: int, items: int, seconds: float) -> None:
        """A slot ended a piece of work of ``items`` items after ``seconds``."""
        slot = self._slots.get(slot_id)
        if slot is None or items <= 0:
            return
        newest = max(seconds, 0.0) / items
        known = slot.seconds_per_item
        slot.seconds_per_item = (
            newest if known is None else SMOOTHING * newest + (1 - SMOOTHING) * known
        )

    def settled(self, item: int) -> None:
        """An item has ended for good: its deaths need not be remembered."""
        self._deaths.pop(item, None)

    def died(self, unfinished: tuple[int, ...]) -> Verdict:
        """A slot's process died with these items unreported: decide on each."""
        again: list[int] = []
        given_up: list[int] = []
        for item in unfinished:
            deaths = self._deaths[item] = self._deaths.get(item, 0) + 1
            if try_again(deaths, self._max_attempts):
                again.append(item)
            else:
                given_up.append(item)
                self.settled(item)
        self._dead.extend(again)
        return Verdict(tuple(again), tuple(given_up))

    def give_back(self, items: tuple[int, ...]) -> None:
        """Items that a slot never began wait again; no death is counted."""
        self._dead.extend(items)

    def _chunk(self, slot: _Slot, available: int) -> int:
        # With a single attempt, an item must not die of its neighbour.
        if slot.seconds_per_item is None or self._max_attempts == 1:
            return 1
        by_time = CHUNK_SECONDS / slot.seconds_per_item if slot.seconds_per_item > 0 else math.inf
        share = self._speed_share(slot)
        by_rest = math.ceil(available * share / 2)
        return max(1, math.floor(min(by_time, max(slot.chunk, 1) * GROWTH, by_rest)))

    def _speed_share(self, slot: _Slot) -> float:
        """This slot's part of the speed of all, taking the unmeasured ones for its equals."""
        own = 1.0 / max(slot.seconds_per_item or 0.0, 1e-9)
        total = sum(
            own if other.seconds_per_item is None else 1.0 / max(other.seconds_per_item, 1e-9)
            for other in self._slots.values()
        )
        return own / total
