"""Roster and table as one: samples and batches in, newest values, history and figures out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.batches import Batch
from exo.gpu.telemetry.table.figures import Aggregate, BatchResult, Statistics
from exo.gpu.telemetry.table.groups import Groups
from exo.gpu.telemetry.table.history import RECEIVED_AT, REMARK, TIMESTAMP, Block
from exo.gpu.telemetry.table.packed import Floats, Rows
from exo.gpu.telemetry.table.roster import Grouping, Roster
from exo.gpu.telemetry.table.table import DeviceTable
from exo.gpu.telemetry.table.totals import MEMORY, Totals
from exo.gpu.telemetry.table.waiting import Waiting
from exo.gpu.telemetry.table.windows import Window
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics

Lines = tuple[Floats, Floats]
"""Times of receipt and values, a line for each device."""

_FIELDS = GPUMetrics.__struct_fields__
_MEMORY_NAMES = frozenset(SERIES[line] for line in MEMORY)
_ROW_BITS = 32
_EVERYTHING = ""


class DeviceRows:
    """Where devices stand in the table, so that a batch need not name them; from ``rows()``.

    A row whose device was forgotten since is refused: another device may stand there.
    """

    __slots__ = ("columns", "handles")

    def __init__(self, columns: Columns, handles: Rows) -> None:
        self.columns = columns
        self.handles = handles

    def __len__(self) -> int:
        return len(self.handles)

    def __getitem__(self, which: slice | Sequence[int] | NDArray[Any]) -> DeviceRows:
        """Some of them, chosen as from an array."""
        return DeviceRows(self.columns, self.handles[which])


class Scope(NamedTuple):
    """What a windowed figure is asked of: which reading, from when to when."""

    metric: str
    window_seconds: float | None
    now: float
    cadence_seconds: float | None

    def statistics(self, lines: Lines) -> Statistics:
        """The figures of these lines."""
        first = -np.inf if self.window_seconds is None else self.now - self.window_seconds
        window = Window(*lines, first, self.now, self.cadence_seconds)
        return window.statistics(self.metric, self.window_seconds)


def devices_told(devices: Sequence[str] | DeviceRows) -> Sequence[object]:
    """What a refusal says of each device of a batch."""
    return devices.handles.tolist() if isinstance(devices, DeviceRows) else devices


class Columns:
    """A :class:`DeviceTable` whose rows belong to the devices of a roster. Not safe for threads."""

    def __init__(
        self, roster: Roster, *, max_history: int, max_devices: int, stale_after_seconds: float
    ) -> None:
        self._roster = roster
        self._table = DeviceTable(max_history, max_devices, stale_after_seconds)
        self._max_devices = max_devices
        self._stale_after_seconds = stale_after_seconds
        self._groups: Groups | None = None

    @property
    def memory_bytes(self) -> int:
        """What the columns take."""
        return self._table.memory_bytes

    def take(self, waiting: Waiting) -> None:
        """Keep samples in order of arrival."""
        table = self._table
        table.reserve(len(self._roster.names))
        table.tidy_remarks()
        lines = map(msgspec.structs.astuple, waiting.samples)
        columns = dict(zip(_FIELDS, zip(*lines, strict=True), strict=True))
        block = {
            TIMESTAMP: np.array(columns[TIMESTAMP], np.float64),
            RECEIVED_AT: np.array(waiting.receipts, np.float64),
            REMARK: self._remarks_of(columns),
        }
        for name in SERIES:
            column = columns[name]
            # To count compares every value: most columns are known by their first one.
            if column[0] is not None or column.count(None) < len(column):
                block[name] = _floats(column)
        table.apply(np.array(waiting.rows, np.int64), block)

    def _remarks_of(self, columns: dict[str, tuple[Any, ...]]) -> Floats:
        code = self._table.remarks.code
        said = zip(
            columns["sleeping"],
            columns["utilization_is_lower_bound"],
            columns["throttle_reasons"],
            columns["missing_reasons"],
            strict=True,
        )
        codes = [
            code(sleeping, lower, throttle, missing)
            if missing or throttle is not None or sleeping or lower
            else 0
            for sleeping, lower, throttle, missing in said
        ]
        return np.array(codes, np.float64)

    def place(self, device_ids: Sequence[str]) -> tuple[Rows, list[str]]:
        """The row of each device, -1 where it gets none; and the ids that had to go for them.

        Those known already are heard of first, then the newcomers, in order.
        """
        ids: Sequence[Any] = device_ids
        gone: list[str] = []
        self._table.reserve(len(self._roster.names))
        try:
            rows = self._rows(ids)
        except TypeError:  # what cannot even be looked up is no id
            ids = _texts(ids)
            rows = self._rows(ids)
        self._table.hear(rows[rows >= 0])
        if rows.size and rows.min() < 0:
            ids = _texts(ids)
            unknown = [ids[index] for index in np.flatnonzero(rows < 0).tolist()]
            newcomers = [one for one in dict.fromkeys(unknown) if one is not None]
            newcomers = newcomers[-self._max_devices :]
            excess = len(self._roster) + len(newcomers) - self._max_devices
            gone = self.evict(excess) if excess > 0 else []
            added = np.array([self._roster.place(one) for one in newcomers], np.int64)
            self._table.reserve(len(self._roster.names))
            self._table.hear(added)
            rows = self._rows(ids)
        return rows, gone

    def _rows(self, ids: Sequence[Any]) -> Rows:
        find: Callable[[Any, int], int] = self._roster.rows.get
        return np.fromiter(map(find, ids, repeat(-1)), np.int64, len(ids))

    def handles(self, rows: Rows) -> DeviceRows:
        """What a caller holds of these rows."""
        generations = self._table.generation[rows]
        return DeviceRows(self, generations << _ROW_BITS | rows)

    def current(self, held: DeviceRows) -> Rows:
        """The rows that are still those devices', -1 for the others."""
        rows = held.handles & ((1 << _ROW_BITS) - 1)
        if held.columns is not self:
            return np.full(len(held), -1)
        same = self._table.generation[rows] == held.handles >> _ROW_BITS
        return rows if same.all() else np.where(same, rows, -1)

    def evict(self, count: int) -> list[str]:
        """Drop the devices that were silent longest; their ids."""
        victims: list[int] = self._table.silent_longest(count).tolist()
        names = [name for row in victims if (name := self._roster.names[row]) is not None]
        self.clear(victims)
        self._roster.release(victims)
        return names

    def clear(self, rows: Sequence[int]) -> None:
        """Empty these rows, as far as there are any."""
        within = [row for row in rows if row < len(self._table.timestamp)]
        self._table.clear(np.array(within, np.int64))

    def record(self, batch: Batch, rows: Rows, now: float) -> tuple[BatchResult, list[str]]:
        """Keep what can be of a batch; the ids whose newest sample is another now."""
        self._table.tidy_remarks()
        block: Block = batch.block(now, self._table.remarks)
        rows = rows[~batch.left_out]
        renewed: list[str | None] = []
        if len(rows):
            newest = self._table.apply(rows, block)
            renewed = list(map(self._roster.names.__getitem__, newest.tolist()))
        return batch.result(block), [name for name in renewed if name is not None]

    def newest(self, row: int) -> tuple[float, float]:
        """Timestamp and time of receipt of a row's newest sample; -inf where there is none."""
        table = self._table
        if row >= len(table.timestamp):
            return -np.inf, -np.inf
        return float(table.timestamp[row]), float(table.received_at[row])

    def sample(self, row: int, device_id: str) -> GPUMetrics | None:
        """The newest sample of a row, or None."""
        return self._table.sample(row, device_id)

    def samples(self, row: int, device_id: str) -> Iterator[GPUMetrics]:
        """The samples kept of a row, oldest first."""
        return self._table.samples(row, device_id)

    def aggregates(
        self, now: float, by: Grouping | None, label: str = "", *, with_stale: bool = False
    ) -> dict[str, Aggregate]:
        """One for each group that has a sample; all are one group where ``by`` is None."""
        table, used = self._table, len(self._roster.names)
        table.reserve(used)
        newest, received_at = table.newest[:, :used], table.received_at[:used]
        sampled = received_at > -np.inf
        stale = sampled & (now - received_at > self._stale_after_seconds)
        counting = sampled if with_stale else sampled & ~stale
        groups = self._grouped()
        names: list[str] = [_EVERYTHING]
        numbers: Rows | None = None
        if by is not None:
            names, numbers = groups.by(by, label)
        shadows = groups.shadows(newest, counting)
        totals = Totals(newest, counting, shadows, numbers, len(names))
        found = zip(names, totals.aggregates(sampled, stale), strict=True)
        return {name: one for name, one in found if one.device_count or by is None}

    def lines(self, scope: Scope, rows: Sequence[int] | Rows) -> Lines:
        """What the figures of these rows are made of."""
        self._table.reserve(len(self._roster.names))
        return self._table.history.received(np.asarray(rows, np.int64), scope.metric)

    def members(self, scope: Scope, by: Grouping | None = None, label: str = "") -> dict[str, Rows]:
        """The rows of each group that were sampled; of a memory pool the one that stands for it."""
        used = len(self._roster.names)
        self._table.reserve(used)
        groups = self._grouped()
        counting = self._table.received_at[:used] > -np.inf
        if scope.metric in _MEMORY_NAMES:
            counting[groups.shadows(self._table.newest[:, :used], counting)] = False
        rows = np.flatnonzero(counting)
        if by is None:
            return {_EVERYTHING: rows}
        names, numbers = groups.by(by, label)
        return {names[one]: rows[numbers[rows] == one] for one in np.unique(numbers[rows]).tolist()}

    def _grouped(self) -> Groups:
        used = len(self._roster.names)
        if self._groups is None or self._groups.version != self._roster.version:
            self._groups = Groups(self._roster, used)
        return self._groups


def _texts(ids: Sequence[object]) -> list[str | None]:
    return [one if isinstance(one, str) and one.strip() else None for one in ids]


def _floats(column: Sequence[float | None]) -> Floats:
    try:
        return np.array(column, np.float64)
    except OverflowError:  # a whole number beyond all floats: nothing that a column can hold
        largest = sys.float_info.max
        held = [None if one is None or abs(one) > largest else one for one in column]
        return np.array(held, np.float64)
