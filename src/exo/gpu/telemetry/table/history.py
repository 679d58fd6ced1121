"""The rings of history: for each row its last samples in order, each reading a packed column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.packed import Floats, Mask, PackedColumn, Rows

TIMESTAMP = "timestamp"
RECEIVED_AT = "received_at"
REMARK = "remark"
FACTS = (TIMESTAMP, RECEIVED_AT, REMARK)
"""The columns that every sample fills, beside those of its readings."""

Block = Mapping[str, Floats]
"""Samples as columns of one length: ``FACTS`` and any readings; NaN is unknown."""

_FIRST_DEPTH = 4
_ROWS_AT_ONCE = 256
_AFTER_ALL = np.iinfo(np.int64).max


class History:
    """At most ``max_history`` samples a row, by sender's time; a column begins when it has a value.

    A row is a ring: ``count`` samples from the slot ``head`` on. Until it is as deep as it may be,
    the head is slot 0 and the depth of all rows doubles when one is full. Where a sender's clock
    was set back, what came after stands behind what came before: the timestamps then fall once.
    """

    def __init__(self, max_history: int) -> None:
        self._max_history = max_history
        self._depth = min(_FIRST_DEPTH, max_history)
        self._heads: Rows = np.zeros(0, np.int64)
        self._counts: Rows = np.zeros(0, np.int64)
        self._columns = {name: PackedColumn(0, self._depth) for name in FACTS}

    @property
    def series(self) -> tuple[str, ...]:
        """The readings that were ever seen."""
        return tuple(name for name in self._columns if name not in FACTS)

    @property
    def memory_bytes(self) -> int:
        """What the columns take; of what is not yet used the system keeps no page."""
        columns = sum(column.memory_bytes for column in self._columns.values())
        return columns + self._heads.nbytes + self._counts.nbytes

    def resize(self, row_count: int) -> None:
        """Make room for so many rows, at least as many as there are."""
        used = len(self._counts)
        for column in self._columns.values():
            column.resize(row_count, self._depth, used)
        added = np.zeros(row_count - used, np.int64)
        self._heads = np.concatenate([self._heads, added])
        self._counts = np.concatenate([self._counts, added])

    def clear(self, rows: Rows) -> None:
        """Empty these rows."""
        self._counts[rows] = self._heads[rows] = 0

    def append(self, rows: Rows, block: Block, place: Rows | int = 0, size: Rows | int = 1) -> None:
        """Add samples that are no older than what their rows hold, in this order.

        ``place`` counts the samples of the same row before each, ``size`` all of the same row.
        """
        counts = self._counts[rows]
        self._deepen(counts + size)
        depth = self._depth
        after = np.minimum(counts + size, depth)
        ends = self._heads[rows] + counts
        slots = (ends + place) % depth
        if np.max(size) > depth:
            kept = np.asarray(place) >= np.asarray(size) - depth
            self._write(rows[kept] * depth + slots[kept], {n: v[kept] for n, v in block.items()})
        else:
            self._write(rows * depth + slots, block)
        self._heads[rows] = (ends + size - after) % depth
        self._counts[rows] = after

    def merge(self, rows: Rows, block: Block, set_back: Rows) -> None:
        """Add samples in order of arrival, each at its place by the sender's time.

        ``set_back`` counts how often the row's clock was set back between what it holds and the
        sample; with 0 the sample belongs to the newest stretch of rising timestamps.
        """
        distinct, which = np.unique(rows, return_inverse=True)
        self._deepen(self._counts[rows] + np.bincount(which)[which])
        for first in range(0, len(distinct), _ROWS_AT_ONCE):
            few = distinct[first : first + _ROWS_AT_ONCE]
            mine = (which >= first) & (which < first + len(few))
            samples = {name: values[mine] for name, values in block.items()}
            self._merge(few, which[mine] - first, samples, set_back[mine])

    def _merge(self, rows: Rows, which: Rows, block: Block, set_back: Rows) -> None:
        """The same for distinct ``rows``, of which ``which`` numbers each sample's."""
        place, sizes = _places(which, len(rows))
        shape = (len(rows), int(sizes.max()))
        slots = np.arange(self._depth)
        rings = rows[:, None] * self._depth + (self._heads[rows][:, None] + slots) % self._depth
        times, stretches = self._order_of(rings, slots < self._counts[rows][:, None])
        times = np.hstack([times, _spread(block[TIMESTAMP], which, place, shape)])
        new = np.full(shape, _AFTER_ALL)
        new[which, place] = set_back
        ranks = np.lexsort((times, np.hstack([stretches, new])), axis=-1)
        totals = self._counts[rows] + sizes
        after = np.minimum(totals, self._depth)
        picked = np.minimum((totals - after)[:, None] + slots, ranks.shape[1] - 1)
        picked = np.take_along_axis(ranks, picked, axis=1)
        written = slots < after[:, None]
        values: dict[str, Floats] = {}
        for name in {**self._columns, **block}:
            old = self._columns[name].take(rings) if name in self._columns else _unknown(rings)
            came = _spread(block.get(name), which, place, shape)
            both = np.hstack([old, came])
            values[name] = np.take_along_axis(both, picked, axis=1)[written]
        self._write((rows[:, None] * self._depth + slots)[written], values)
        self._heads[rows] = 0
        self._counts[rows] = after

    def _order_of(self, rings: Rows, held: Mask) -> tuple[Floats, Rows]:
        """Timestamps, and the stretch of rising time that each is in: 0 for the newest."""
        times = np.where(held, self._columns[TIMESTAMP].take(rings), np.inf)
        falls = np.zeros(times.shape, np.int64)
        falls[:, 1:] = times[:, 1:] < times[:, :-1]
        stretches = np.cumsum(falls, axis=1)
        stretches -= stretches[:, -1:]
        return times, np.where(held, stretches, _AFTER_ALL)

    def read(self, row: int) -> dict[str, Floats]:
        """All samples of a row, oldest first, as columns."""
        head, count = int(self._heads[row]), int(self._counts[row])
        slots: Rows = (head + np.arange(count)) % self._depth
        places = row * self._depth + slots
        return {name: column.take(places) for name, column in self._columns.items()}

    def received(self, rows: Rows, name: str) -> tuple[Floats, Floats]:
        """Times of receipt and values of a reading, a line for each row; NaN is no value."""
        slots = np.arange(int(self._counts[rows].max(initial=0)))
        places = rows[:, None] * self._depth + slots
        held = slots < self._counts[rows][:, None]
        column = self._columns.get(name)
        values = _unknown(places) if column is None else column.take(places)
        return self._columns[RECEIVED_AT].take(places), np.where(held, values, np.nan)

    def remarks(self) -> Iterator[int]:
        """The numbers of all remarks that a sample here holds."""
        held = np.flatnonzero(self._held())
        yield from np.unique(self._columns[REMARK].take(held)).astype(np.int64).tolist()

    def _held(self) -> Mask:
        return np.arange(self._depth) < self._counts[:, None]

    def _deepen(self, needed: NDArray[np.int64]) -> None:
        deepest = min(int(needed.max()), self._max_history)
        if deepest <= self._depth:
            return
        self._depth = min(max(2 * self._depth, deepest), self._max_history)
        used = len(self._counts)
        for column in self._columns.values():
            column.resize(used, self._depth, used)

    def _write(self, places: Rows, block: Block) -> None:
        for name, values in block.items():
            if name not in self._columns and not np.isnan(values).all():
                self._columns[name] = PackedColumn(len(self._counts), self._depth)
                self._columns[name].put_unknown(self._held())
        for name, column in self._columns.items():
            values = block.get(name)
            if values is None:
                column.put_unknown(places)
            else:
                column.put(places, values, self._held)


def _places(which: Rows, row_count: int) -> tuple[Rows, Rows]:
    """How many samples of the same row stand before each, and how many each row has."""
    order = np.argsort(which, kind="stable")
    sizes = np.bincount(which, minlength=row_count)
    place = np.empty(len(which), np.int64)
    place[order] = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place, sizes


def _spread(values: Floats | None, which: Rows, place: Rows, shape: tuple[int, int]) -> Floats:
    """A line for each row, from samples that know theirs and their place in it."""
    lines = np.full(shape, np.nan)
    if values is not None:
        lines[which, place] = values
    return lines


def _unknown(like: Rows) -> Floats:
    return np.full(like.shape, np.nan)
