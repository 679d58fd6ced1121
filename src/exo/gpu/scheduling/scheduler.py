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

# Items before the newest chunk that count beside it, or as many as it has where those are more:
# a throttling device is followed within two chunks, and one long item among short ones is no news.
ITEMS_REMEMBERED = 15

# Until two chunks have shown how unlike items are, they are taken to differ as exponential ones do.
USUAL_VARIATION = 1.0

# Of what is known of an item's scatter, as much as that many chunks.
PRIOR_CHUNKS = 2
MOST_CHUNKS = 32

# A slot whose chunk ends within this gets its next one already: two reports of a worker apart.
AHEAD_SECONDS = 0.04

# An item of eleven times the usual length tells that items differ, and a longer one no more.
_MOST_OFF = 10.0

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

    __slots__ = ("chunk", "chunks", "items", "seconds_per_item", "squared_variation")

    def __init__(self) -> None:
        self.chunk = 0
        self.seconds_per_item: float | None = None
        self.items = 0.0
        """Items that the estimate rests on."""
        self.chunks = 0
        self.squared_variation = USUAL_VARIATION**2
        """Of single items: variance over the squared mean."""

    def learn(self, items: int, seconds: float) -> None:
        """A chunk has ended."""
        newest, known = seconds / items, self.seconds_per_item
        if known is None:
            self.seconds_per_item, self.items = newest, float(items)
            return
        if known > 0:
            # The mean of a chunk scatters less than its items, by the root of how many they are.
            off = min(abs(newest / known - 1.0) * math.sqrt(items), _MOST_OFF) ** 2
            self.chunks = min(self.chunks + 1, MOST_CHUNKS)
            part = 1.0 / (self.chunks + PRIOR_CHUNKS)
            self.squared_variation += part * (off - self.squared_variation)
        before = min(self.items, max(items, ITEMS_REMEMBERED))
        self.items = before + items
        self.seconds_per_item = (before * known + items * newest) / self.items

    @property
    def uncertainty(self) -> float:
        """Standard error of the seconds per item, as a part of them."""
        return math.sqrt(self.squared_variation / self.items) if self.items else math.inf


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
    than its share, weighted by speed, of a part of what is left: half at most, and less the more
    unlike items are (factoring: Hummel, Schonberg and Flynn 1992) and the less sure its speed is,
    so that no slot sits on a long chunk while the others are done. An item whose process died
    goes first, alone: it may be the one that killed it.
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
        slot.at(kind).learn(items, max(seconds, 0.0))

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
        part = self._part(speed, available) * (1.0 + speed.uncertainty)
        by_rest = math.ceil(available * self._share(seconds, kind) / part)
        most = min(by_time, max(speed.chunk, 1) * GROWTH, by_rest, MOST_ITEMS)
        return max(1, math.floor(most))

    def _part(self, speed: _Speed, available: int) -> float:
        """The x of factoring: all slots together take one x-th of what is left, 2 or more."""
        slots = len(self._slots)
        risk = slots * math.sqrt(speed.squared_variation / max(available, 1)) / 2
        return 2.0 + risk * risk + risk * math.sqrt(risk * risk + 4.0)

    def _share(self, seconds_per_item: float, kind: Hashable) -> float:
        """A slot's part of the speed of all, taking the unmeasured ones for its equals."""
        own = 1.0 / max(seconds_per_item, 1e-9)
        total = 0.0
        for slot in self._slots.values():
            speed = slot.speeds.get(kind)
            known = None if speed is None else speed.seconds_per_item
            total += own if known is None else 1.0 / max(known, 1e-9)
        return own / total
