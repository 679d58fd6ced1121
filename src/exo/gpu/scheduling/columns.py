"""A block of rows in the order of decisions, with columns: the first that will do, at any size.

A block of a few rows is looked through one by one. A longer one keeps what requests set limits for
in columns, where NumPy rules most rows out at once; what is left is asked row by row, so that the
columns may err on one side only: they never rule out a row that will do.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.scheduling.kinds import KindMask
from exo.gpu.scheduling.rows import ELIGIBLE, TAKEN, Key, Row, verdict
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sizes(msgspec.Struct, frozen=True):
    """How long blocks are, in rows: up to ``plain`` without columns, cut in two at 2 x ``block``.

    A plain loop over the first is faster than the eight calls of NumPy that it replaces; the
    second is short enough to move a row in a few microseconds, and long enough that NumPy pays.
    """

    plain: int = 96
    block: int = 256


_LOOKED_AT_FIRST = 6

_FREE, _MOST, _IDLE, _CELSIUS, _RECEIVED, _OPEN, _ROOM, _KIND = range(8)
# How open a device is: not at all, beside other leases, also to one that takes a slot, alone.
_CLOSED, _SHARED, _SLOT, _ALONE = 0.0, 1.0, 2.0, 3.0
# More than the tolerance with which rows compare shares: a column rules out too little at most.
_LENIENT = 1e-6


class Question(msgspec.Struct, frozen=True):
    """A request, the kinds of device that it allows (None: all), and when it is asked."""

    request: Request
    kinds: KindMask | None
    now: float
    stale_after_seconds: float


class Block:
    """Consecutive rows of an order, with their keys and, from a certain length on, columns."""

    __slots__ = ("best_free", "columns", "keys", "rows", "sizes")

    def __init__(self, keys: list[Key], rows: list[Row], sizes: Sizes) -> None:
        self.sizes = sizes
        self.keys = keys
        self.rows = rows
        # Arrays that a row is put into and taken out of in place; NumPy looks at them as they are.
        self.columns: tuple[array[float], ...] | None = None
        self.best_free = -1.0
        self.gather()

    def gather(self) -> None:
        """Make the columns anew, where the block is long enough for any."""
        self.columns = None
        if len(self.rows) > self.sizes.plain:
            figures = zip(*map(_figures, self.rows), strict=True)
            self.columns = tuple(array("d", column) for column in figures)
        self.best_free = self._most_free()

    def insert(self, place: int, key: Key, row: Row) -> None:
        """Put a row in its place."""
        self.keys.insert(place, key)
        self.rows.insert(place, row)
        if row.free > self.best_free:
            self.best_free = _free(row)
        if self.columns is None:
            if len(self.rows) > self.sizes.plain:
                self.gather()
            return
        for column, figure in zip(self.columns, _figures(row), strict=True):
            column.insert(place, figure)

    def move(self, place: int, key: Key, row: Row) -> None:
        """Put a row in its place, and take its predecessor out of another."""
        keys, rows, columns = self.keys, self.rows, self.columns
        gone = rows[place]
        del keys[place], rows[place]
        new = bisect_left(keys, key)
        keys.insert(new, key)
        rows.insert(new, row)
        if columns is not None:
            for column, figure in zip(columns, _figures(row), strict=True):
                del column[place]
                column.insert(new, figure)
        self._retire(gone)
        if row.free > self.best_free:
            self.best_free = _free(row)

    def remove(self, place: int) -> None:
        """Take a row out."""
        gone = self.rows[place]
        del self.keys[place], self.rows[place]
        for column in self.columns or ():
            del column[place]
        self._retire(gone)

    def _retire(self, gone: Row) -> None:
        if gone.free >= self.best_free:
            self.best_free = self._most_free()

    def _most_free(self) -> float:
        if self.columns is not None:
            return max(self.columns[_FREE], default=-1.0)
        return max((_free(row) for row in self.rows), default=-1.0)

    def first(self, question: Question, last_place: int | None) -> Row | None:
        """The first row that will do, of a block with columns."""
        rows = self.rows
        # Most requests are content with one of the first few.
        row = first_of(rows[:_LOOKED_AT_FIRST], question, last_place)
        if row is not None:
            return row
        left = (rows[place] for place in self._possible(question, now=True))
        return first_of(left, question, last_place)

    def holds(self, question: Question) -> bool:
        """Whether a device that could serve is only taken for now, where none will do now."""
        rows = self.rows
        if self.columns is not None:
            rows = [rows[place] for place in self._possible(question, now=False)]
        request, now, stale = question.request, question.now, question.stale_after_seconds
        allowed = None if question.kinds is None else question.kinds.allowed
        memory, nobody_ruled_out = request.memory_bytes or -1, not request.without_devices
        for row in rows:
            if row.most < memory or not (allowed is None or allowed[row.kind]):
                continue
            if (row.easy and nobody_ruled_out) or verdict(row, request, now, stale) == TAKEN:
                return True
        return False

    def _possible(self, question: Question, *, now: bool) -> list[int]:
        """The places of rows that may do, in order; with ``now`` false, of those that ever may."""
        import numpy as np

        request, kinds = question.request, question.kinds
        if not now:
            mask = self._column(_MOST) >= float(request.memory_bytes or -1)
        else:
            mask = self._column(_OPEN) >= _openness(request)
            if request.share is not None:
                mask &= self._column(_ROOM) >= request.share
            if request.memory_bytes is not None:
                mask &= self._column(_FREE) >= float(request.memory_bytes)
            if request.min_idle_percent:
                mask &= self._column(_IDLE) >= request.min_idle_percent
            if request.max_temperature_celsius is not None:
                mask &= self._column(_CELSIUS) <= request.max_temperature_celsius
            mask &= question.now - self._column(_RECEIVED) <= question.stale_after_seconds
        if kinds is not None:
            if kinds.column is None:
                kinds.column = np.array(kinds.allowed)
            mask &= kinds.column[self._column(_KIND).astype(np.intp)]
        return np.flatnonzero(mask).tolist()

    def _column(self, number: int) -> NDArray[np.float64]:
        """A view of a column, to be let go of before the next row is put in or taken out."""
        import numpy as np

        assert self.columns is not None
        return np.frombuffer(self.columns[number])


def first_of(rows: Iterable[Row], question: Question, last_place: int | None) -> Row | None:
    """The first of the rows that will do, up to ``last_place``, by a plain loop."""
    request, now, stale = question.request, question.now, question.stale_after_seconds
    allowed = None if question.kinds is None else question.kinds.allowed
    memory, nobody_ruled_out = request.memory_bytes or -1, not request.without_devices
    idle, most = request.min_idle_percent or 0, request.max_temperature_celsius
    for row in rows:
        if row.free < memory or not (allowed is None or allowed[row.kind]):
            continue
        if last_place is not None and row.place > last_place:
            return None
        if row.easy and nobody_ruled_out:  # the verdict of most rows, without a call
            if (
                now - row.received_at <= stale
                and row.idle >= idle
                and (most is None or row.celsius <= most)
            ):
                return row
        elif verdict(row, request, now, stale) == ELIGIBLE:
            return row
    return None


def _free(row: Row) -> float:
    return float(row.free)


def _openness(request: Request) -> float:
    if request.exclusive:
        return _ALONE
    if request.memory_bytes is not None or request.share is not None:
        return _SHARED
    # With a number of slots of its own, the request is judged row by row.
    return _SLOT if request.slots is None else _SHARED


def _open(row: Row) -> float:
    if row.unwell or row.wholly_leased:
        return _CLOSED
    if not row.lease_count:
        return _ALONE
    part = row.max_share / row.slots
    room = row.slot_leases < row.slots and row.share_held + part <= row.max_share + _LENIENT
    return _SLOT if room else _SHARED


def _figures(row: Row) -> tuple[float, ...]:
    """The columns of a row; what is not known stands where no limit lets it pass."""
    return (
        _free(row),
        float(row.most),
        row.idle,
        row.celsius,
        row.received_at,
        _open(row),
        row.max_share - row.shares + _LENIENT,
        float(row.kind),
    )
