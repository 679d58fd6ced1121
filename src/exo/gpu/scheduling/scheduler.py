"""Pull-based dispatch: which slot takes how many items next, and from whom it takes them over."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping

import msgspec

# Long enough that dispatch (about 0.3 ms a chunk) is lost in it, short enough to balance with.
CHUNK_SECONDS = 0.1

# A chunk at most doubles, so that one lucky short item does not buy a slot a long one.
GROWTH = 2

# Deaths send what was unreported again item by item, which is dear for more than this.
MOST_ITEMS = 20_000

# Weight of the newest chunk in a slot's estimate of the seconds that an item takes.
SMOOTHING = 0.5

# A slot whose chunk ends within this gets its next one already: two reports of a worker apart.
AHEAD_SECONDS = 0.04

# A slot remembers its speed at so many kinds of work.
KINDS_KEPT = 8

UNKNOWN = 2**53
"""Stands for how many items are left where nobody knows yet."""


class Take(msgspec.Struct, frozen=True):
    """The items that a slot takes now: from the dead ones' (``items``), or ``fresh`` new ones."""

    items: tuple[int, ...] = ()
    fresh: int = 0


class _Speed:
    """What a slot was seen to do with one kind of work."""

    __slots__ = ("chunk", "seconds_per_item")

    def __init__(self) -> None:
        self.chunk = 0
        self.seconds_per_item: float | None = None


class _Slot:
    """A slot: its speeds, the kind used last at the end."""

    def __init__(self) -> None:
        self.speeds: dict[Hashable, _Speed] = {}

    def at(self, kind: Hashable) -> _Speed:
        """Its speed at a kind of work."""
        speed = self.speeds[kind] = self.speeds.pop(kind, None) or _Speed()
        while len(self.speeds) > KINDS_KEPT:
            del self.speeds[next(iter(self.speeds))]
        return speed


class PullScheduler:
    """Items go to whichever slot is free, so that a fast device does more of them.

    A slot's chunk is what it does in :data:`CHUNK_SECONDS` by its own measured speed, never more
    than its share of half of what is left, weighted by speed (factoring, Hummel et al. 1992), so
    that no slot sits on a long chunk while the others are done. An item whose process died goes
    first, alone: it may be the one that killed it.
    """

    def __init__(self, *, max_attempts: int = 3, far_seconds: float = 0.0) -> None:
        """``far_seconds`` is how much longer a slot's report and its answer take than here."""
        self.ahead_seconds = AHEAD_SECONDS + far_seconds
        """A slot whose chunk ends within this should have its next one already."""
        self._max_attempts = max_attempts
        self._slots: dict[int, _Slot] = {}
        self._again: deque[int] = deque()

    @property
    def waiting(self) -> int:
        """How many items wait for another try."""
        return len(self._again)

    def open_slot(self, slot_id: int) -> None:
        """A slot can take work."""
        self._slots.setdefault(slot_id, _Slot())

    def close_slot(self, slot_id: int) -> None:
        """A slot is gone for good."""
        self._slots.pop(slot_id, None)

    def take(self, slot_id: int, available: int, kind: Hashable = None) -> Take:
        """What the slot takes next, of ``available`` fresh items; empty when nothing waits.

        ``kind`` tells work apart whose items take unlike times, such as two functions.
        """
        if self._again:
            return Take(items=(self._again.popleft(),))
        speed = self._slots[slot_id].at(kind)
        speed.chunk = min(self._chunk(speed, available, kind), available)
        return Take(fresh=speed.chunk)

    def finished(self, slot_id: int, items: int, seconds: float, kind: Hashable = None) -> None:
        """A slot ended a piece of work of ``items`` items after ``seconds``."""
        slot = self._slots.get(slot_id)
        if slot is None or items <= 0:
            return
        speed = slot.at(kind)
        newest = max(seconds, 0.0) / items
        known = speed.seconds_per_item
        speed.seconds_per_item = (
            newest if known is None else SMOOTHING * newest + (1 - SMOOTHING) * known
        )

    def is_nearly_done(self, slot_id: int, left: int, kind: Hashable = None) -> bool:
        """Whether a slot with ``left`` items to go should have its next chunk already."""
        slot = self._slots.get(slot_id)
        if slot is None or self._again:
            return False
        seconds = slot.at(kind).seconds_per_item
        return seconds is not None and left * seconds <= self.ahead_seconds

    def victim(self, left: Mapping[int, int]) -> int | None:
        """The slot whose waiting items an idle one should have, if any should.

        ``left`` are the unreported items of each slot that works: the first of them runs, and the
        others wait. The one with the most to go is taken, by what each is known to do.
        """
        waiting = {slot_id: count for slot_id, count in left.items() if count > 1}
        if not waiting:
            return None
        return max(waiting, key=lambda slot_id: (waiting[slot_id], -slot_id))

    def give_back(self, items: tuple[int, ...]) -> None:
        """Items that are to be tried once more wait again; each goes alone, before all others."""
        self._again.extend(items)

    def _chunk(self, speed: _Speed, available: int, kind: Hashable) -> int:
        # With a single attempt, an item must not die of its neighbour.
        if speed.seconds_per_item is None or self._max_attempts == 1:
            return 1
        seconds = speed.seconds_per_item
        by_time = CHUNK_SECONDS / seconds if seconds > 0 else math.inf
        by_rest = math.ceil(available * self._share(seconds, kind) / 2)
        most = min(by_time, max(speed.chunk, 1) * GROWTH, by_rest, MOST_ITEMS)
        return max(1, math.floor(most))

    def _share(self, seconds_per_item: float, kind: Hashable) -> float:
        """A slot's part of the speed of all, taking the unmeasured ones for its equals."""
        own = 1.0 / max(seconds_per_item, 1e-9)
        total = 0.0
        for slot in self._slots.values():
            speed = slot.speeds.get(kind)
            known = None if speed is None else speed.seconds_per_item
            total += own if known is None else 1.0 / max(known, 1e-9)
        return own / total
