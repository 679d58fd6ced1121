"""The device table: a row for each device, a column for each newest reading, a ring behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.history import FACTS, RECEIVED_AT, REMARK, TIMESTAMP, Block, History
from exo.gpu.telemetry.table.packed import Floats, Rows
from exo.gpu.telemetry.table.remarks import Remark, Remarks
from exo.gpu.vocabulary.metrics import BOUNDS, SERIES, GPUMetrics

_FIRST_ROWS = 16
_NEVER = np.iinfo(np.int64).max
_WHOLE = frozenset(name for name, bound in BOUNDS.items() if bound.whole)


class DeviceTable:
    """Samples by row number; which device a row is, its owner knows.

    ``newest`` has a line for each reading of ``SERIES``, float64 and NaN where unknown; whole
    numbers are exact up to 2**53. ``timestamp``, ``received_at`` and ``remark`` belong to the same
    samples; a row without a sample was received at -inf. Not safe for threads by itself.
    """

    def __init__(self, max_history: int, max_devices: int, stale_after_seconds: float) -> None:
        self.remarks = Remarks()
        self.history = History(max_history)
        self.newest: Floats = np.zeros((len(SERIES), 0))
        self.timestamp: Floats = np.zeros(0)
        self.received_at: Floats = np.zeros(0)
        self.remark: Rows = np.zeros(0, np.int64)
        self.heard: Rows = np.zeros(0, np.int64)
        """When each row was last heard of, counted in samples over all rows; free rows never."""
        self.generation: Rows = np.zeros(0, np.int64)
        """How many devices a row has had."""
        self._heard_count = 0
        self._max_devices = max_devices
        self._stale_after_seconds = stale_after_seconds

    @property
    def memory_bytes(self) -> int:
        """What its columns take."""
        facts = (self.timestamp, self.received_at, self.remark, self.heard, self.generation)
        own = self.newest.nbytes + sum(column.nbytes for column in facts)
        return own + self.history.memory_bytes + self.remarks.memory_bytes

    def reserve(self, row_count: int) -> None:
        """Have at least so many rows: twice as many as before, or as many devices as may be."""
        used = len(self.timestamp)
        if row_count <= used:
            return
        room = max(row_count, min(max(2 * used, _FIRST_ROWS), self._max_devices))
        self.newest = _longer(self.newest, room, np.nan)
        self.timestamp = _longer(self.timestamp, room, -np.inf)
        self.received_at = _longer(self.received_at, room, -np.inf)
        self.remark = _longer(self.remark, room, 0)
        self.heard = _longer(self.heard, room, _NEVER)
        self.generation = _longer(self.generation, room, 0)
        self.history.resize(room)

    def clear(self, rows: Rows) -> None:
        """Empty these rows for other devices."""
        self.newest[:, rows] = np.nan
        self.timestamp[rows] = self.received_at[rows] = -np.inf
        self.remark[rows] = 0
        self.heard[rows] = _NEVER
        self.generation[rows] += 1
        self.history.clear(rows)

    def hear(self, rows: Rows) -> None:
        """Note that something came of these rows, in this order."""
        self.heard[rows] = self._heard_count + np.arange(len(rows))
        self._heard_count += len(rows)

    def silent_longest(self, count: int) -> Rows:
        """So many rows of those that were ever heard of, the ones heard of longest ago."""
        if count == 1:
            return np.array([self.heard.argmin()])
        return np.argsort(self.heard, kind="stable")[:count]

    def tidy_remarks(self) -> None:
        """Forget the remarks that no sample holds any more, where there are many."""
        if self.remarks.crowded:
            self.remarks.drop([*self.history.remarks(), *self.remark.tolist()])

    def apply(self, rows: Rows, block: Block) -> Rows:
        """Keep samples in order of arrival; the rows whose newest sample is another now.

        A sample becomes the newest when its timestamp is not below the newest one's, or when that
        was received more than the stale limit before it: then the sender's clock was set back.
        """
        self.hear(rows)
        if len(rows) > 1 and np.bincount(rows).max() > 1:
            return self._apply_groups(rows, block)
        late = block[TIMESTAMP] < self.timestamp[rows]
        if not late.any():
            self.history.append(rows, block)
            self._renew(rows, block)
            return rows
        silence = block[RECEIVED_AT] - self.received_at[rows]
        set_back = late & (silence > self._stale_after_seconds)
        newest = ~late | set_back
        if not late.all():
            self.history.append(rows[~late], _some(block, ~late))
        self.history.merge(rows[late], _some(block, late), set_back[late].astype(np.int64))
        self._renew(rows[newest], _some(block, newest))
        return rows[newest]

    def _apply_groups(self, rows: Rows, block: Block) -> Rows:
        """Where rows repeat: those whose times only rise in bulk, the others sample by sample."""
        order = np.argsort(rows, kind="stable")
        rows, block = rows[order], _some(block, order)
        starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        sizes = np.diff(starts, append=len(rows))
        times = block[TIMESTAMP]
        before = np.concatenate([[0.0], times[:-1]])
        before[starts] = self.timestamp[rows[starts]]
        disorder = np.logical_or.reduceat(times < before, starts)
        newest = starts + sizes - 1
        late = np.repeat(disorder, sizes)
        if not late.all():
            place = np.arange(len(rows)) - np.repeat(starts, sizes)
            size = np.repeat(sizes, sizes)
            rising = ~late
            self.history.append(rows[rising], _some(block, rising), place[rising], size[rising])
        if late.any():
            set_back = np.zeros(len(rows), np.int64)
            for group in np.flatnonzero(disorder).tolist():
                newest[group] = self._judge(rows, block, starts[group], sizes[group], set_back)
            self.history.merge(rows[late], _some(block, late), set_back[late])
        newest = newest[newest >= 0]
        self._renew(rows[newest], _some(block, newest))
        return rows[newest]

    def _judge(self, rows: Rows, block: Block, start: int, size: int, set_back: Rows) -> int:
        """The newest sample of one row's, or -1; counts in ``set_back`` how often time fell."""
        row, newest, count = int(rows[start]), -1, 0
        latest, heard = float(self.timestamp[row]), float(self.received_at[row])
        times = block[TIMESTAMP][start : start + size].tolist()
        receipts = block[RECEIVED_AT][start : start + size].tolist()
        for number, (timestamp, received_at) in enumerate(zip(times, receipts, strict=True)):
            fell = timestamp < latest
            if not fell or received_at - heard > self._stale_after_seconds:
                count += fell
                latest, heard, newest = timestamp, received_at, start + number
            set_back[start + number] = count
        return newest

    def _renew(self, rows: Rows, block: Block) -> None:
        self.timestamp[rows] = block[TIMESTAMP]
        self.received_at[rows] = block[RECEIVED_AT]
        self.remark[rows] = block[REMARK]
        seen = self.history.series
        for number, name in enumerate(SERIES):
            if name in seen:
                self.newest[number, rows] = block.get(name, np.nan)

    def sample(self, row: int, device_id: str) -> GPUMetrics | None:
        """The newest sample of a row, or None."""
        if self.received_at[row] == -np.inf:
            return None
        values = dict(zip(SERIES, self.newest[:, row].tolist(), strict=True))
        remark = self.remarks[int(self.remark[row])]
        return _sample(device_id, float(self.timestamp[row]), remark, values)

    def samples(self, row: int, device_id: str) -> Iterator[GPUMetrics]:
        """The samples kept of a row, oldest first."""
        columns = {name: values.tolist() for name, values in self.history.read(row).items()}
        times, _, codes = (columns.pop(name) for name in FACTS)
        for number, timestamp in enumerate(times):
            values = {name: column[number] for name, column in columns.items()}
            yield _sample(device_id, timestamp, self.remarks[int(codes[number])], values)


def _sample(
    device_id: str, timestamp: float, remark: Remark, values: dict[str, float]
) -> GPUMetrics:
    known: dict[str, Any] = {
        name: int(value) if name in _WHOLE else value
        for name, value in values.items()
        if value == value  # noqa: PLR0124 - NaN alone is not itself
    }
    return GPUMetrics(
        device_id,
        timestamp,
        sleeping=remark.sleeping,
        utilization_is_lower_bound=remark.utilization_is_lower_bound,
        throttle_reasons=remark.throttle_reasons,
        missing_reasons=dict(remark.missing_reasons),
        **known,
    )


def _some(block: Block, which: NDArray[Any]) -> Block:
    return {name: values[which] for name, values in block.items()}


def _longer(column: NDArray[Any], room: int, fill: float) -> NDArray[Any]:
    added = np.full((*column.shape[:-1], room - column.shape[-1]), fill, column.dtype)
    return np.concatenate([column, added], axis=-1)
