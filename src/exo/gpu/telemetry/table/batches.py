"""A columnar batch: many samples at once, checked value by value as one sample is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exo.gpu.telemetry.table.figures import BatchResult, Refusal
from exo.gpu.telemetry.table.history import RECEIVED_AT, REMARK, TIMESTAMP, Block
from exo.gpu.telemetry.table.packed import Floats, Mask
from exo.gpu.telemetry.table.remarks import Remark, Remarks
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.metrics import BOUNDS, SERIES, Bound

# Enough to find what is wrong with a sender; the counts tell the rest.
REFUSALS_TOLD = 20

_FINITE = "a finite number"
_LARGEST = sys.float_info.max
_USED_ABOVE_TOTAL = "at most memory_total_bytes"


class Batch:
    """The columns of a batch as they came, less what cannot be.

    Raises:
        InvalidValue: for columns that are not numbers or not of one length.
        UnknownName: for a reading that no sample has.

    """

    def __init__(
        self,
        length: int,
        timestamps: ArrayLike,
        readings: Mapping[str, ArrayLike],
        received_at: ArrayLike | None,
        remarks: Sequence[Remark | None] | None,
    ) -> None:
        self.length = length
        self._refusals: list[Refusal] = []
        self._refused: dict[str, Mask] = {}
        self._expected: dict[str, str] = {}
        self._columns = {TIMESTAMP: _column(TIMESTAMP, timestamps, length)}
        if received_at is not None:
            same = isinstance(received_at, (int, float))
            receipts = np.full(length, float(received_at)) if same else received_at
            self._columns[RECEIVED_AT] = _column(RECEIVED_AT, receipts, length)
        for name, values in readings.items():
            if name not in BOUNDS:
                raise UnknownName("readings", name, SERIES)
            self._columns[name] = self._checked(name, _column(name, values, length))
        self._compare_memory()
        if remarks is not None and len(remarks) != length:
            raise InvalidValue("remarks", len(remarks), f"{length} of them")
        self._remarks = remarks
        self.left_out: Mask = np.zeros(length, np.bool_)
        for name in (TIMESTAMP, RECEIVED_AT):
            times = self._columns.get(name)
            if times is not None:
                self.leave_out(~np.isfinite(times), name, times, _FINITE)

    def leave_out(
        self, which: Mask, field: str, values: Floats | Sequence[object], expected: str
    ) -> None:
        """Refuse whole samples for what one field of them is."""
        if which.any():
            self._tell(which, field, values, expected)
            self.left_out |= which

    def block(self, now: float, remarks: Remarks) -> Block:
        """The samples that are left, received at ``now`` at the latest."""
        columns = dict(self._columns)
        receipts = columns.get(RECEIVED_AT)
        columns[RECEIVED_AT] = (
            np.full(self.length, now) if receipts is None else np.minimum(receipts, now)
        )
        columns[REMARK] = self._codes(remarks)
        if not self.left_out.any():
            return columns
        kept = ~self.left_out
        return {name: values[kept] for name, values in columns.items()}

    def result(self, block: Block) -> BatchResult:
        """What became of it, ``block`` being what was kept."""
        readings = [values for name, values in block.items() if name in BOUNDS]
        unknown = sum(int(np.count_nonzero(np.isnan(values))) for values in readings)
        kept = len(block[TIMESTAMP])
        return BatchResult(
            sample_count=kept,
            reading_count=kept * len(readings) - unknown,
            refused_sample_count=int(np.count_nonzero(self.left_out)),
            refused_reading_count=sum(int(np.count_nonzero(bad)) for bad in self._refused.values()),
            refusals=tuple(self._refusals),
        )

    def _checked(self, name: str, values: Floats) -> Floats:
        bound = BOUNDS[name]
        possible = (values >= bound.low) & (values <= min(bound.high, _LARGEST))
        if bound.whole:
            possible &= values == np.rint(values)
        if possible.all():
            return values
        return self._without(name, values, ~(possible | np.isnan(values)), _described(bound))

    def _compare_memory(self) -> None:
        used = self._columns.get("memory_used_bytes")
        total = self._columns.get("memory_total_bytes")
        if used is not None and total is not None:
            above = used > total
            cleaned = self._without("memory_used_bytes", used, above, _USED_ABOVE_TOTAL)
            self._columns["memory_used_bytes"] = cleaned

    def _without(self, name: str, values: Floats, bad: Mask, expected: str) -> Floats:
        if not bad.any():
            return values
        self._tell(bad, name, values, expected)
        self._refused[name] = bad | self._refused.get(name, False)
        self._expected.setdefault(name, expected)
        return np.where(bad, np.nan, values)

    def _tell(
        self, which: Mask, field: str, values: Floats | Sequence[object], expected: str
    ) -> None:
        room = REFUSALS_TOLD - len(self._refusals)
        for index in np.flatnonzero(which)[:room].tolist():
            value = f"{values[index]!s:.100}"
            self._refusals.append(Refusal(index=index, field=field, value=value, expected=expected))

    def _codes(self, remarks: Remarks) -> Floats:
        """The number of each sample's remark, which says of a refused value that it was."""
        given = self._remarks
        codes = np.zeros(self.length, np.int64)
        if given is not None:
            codes[:] = [0 if one is None else _code(remarks, one, {}) for one in given]
        if self._refused:
            marks = np.zeros(self.length, np.int64)
            for bit, bad in enumerate(self._refused.values()):
                marks |= bad.astype(np.int64) << bit
            names = list(self._refused)
            pairs, which = np.unique(np.stack([codes, marks]), axis=1, return_inverse=True)
            told = [
                _code(remarks, remarks[code], self._reasons(names, mark))
                for code, mark in pairs.T.tolist()
            ]
            codes = np.array(told)[which.reshape(-1)]
        return codes.astype(np.float64)

    def _reasons(self, names: Sequence[str], mark: int) -> dict[str, str]:
        refused = [name for bit, name in enumerate(names) if mark >> bit & 1]
        return {name: f"refused: not {self._expected[name]}" for name in refused}


def _column(field: str, values: ArrayLike, length: int) -> Floats:
    """Floats of one's own length; None becomes NaN, and what is no number an infinity."""
    try:
        column: NDArray[Any] = np.asarray(values)
    except ValueError:  # lines of unlike length
        column = np.zeros(0, np.str_)
    if column.dtype.kind not in "fiuO":
        raise InvalidValue(field, str(column.dtype), "a column of numbers")
    if column.shape != (length,):
        raise InvalidValue(field, column.shape, f"a column of {length} values")
    if column.dtype.kind == "O":
        return np.array([_float(value) for value in column], np.float64)
    return column.astype(np.float64, copy=False)


def _float(value: object) -> float:
    if value is None:
        return np.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    return value if isinstance(value, float) else np.inf


def _described(bound: Bound) -> str:
    kind = "a whole number" if bound.whole else "a number"
    if bound.high <= _LARGEST:
        return f"{kind} within {bound.low:g}..{bound.high:g}"
    return f"{kind} of at least {bound.low:g}"


def _code(remarks: Remarks, remark: Remark, reasons: Mapping[str, str]) -> int:
    return remarks.code(
        remark.sleeping,
        remark.utilization_is_lower_bound,
        remark.throttle_reasons,
        {**remark.missing_reasons, **reasons},
    )
