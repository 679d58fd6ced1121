"""Sums, means and maxima over the newest samples, of all devices or of each group of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.figures import Aggregate
from exo.gpu.telemetry.table.packed import Floats, Mask, Rows
from exo.gpu.vocabulary.metrics import READINGS, SERIES

_TOTAL = SERIES.index("memory_total_bytes")
_USED = SERIES.index("memory_used_bytes")
_RESERVED = SERIES.index("memory_reserved_bytes")
_POWER = SERIES.index("power_watts")
_UTILIZATION = SERIES.index("compute_utilization_percent")
_TEMPERATURE = SERIES.index("temperature_celsius")
MEMORY = (_USED, _TOTAL, _RESERVED)
"""The lines of ``newest`` that members of one pool would count twice."""

_FREE = 2
"""The line behind used and total that is worked out from them."""

assert SERIES[: len(READINGS)] == READINGS
assert (_USED, _TOTAL) == (0, 1)


class Totals:
    """What is added up: the newest readings of the rows that count.

    ``counting`` masks the rows whose readings take part, ``group`` gives each row a group below
    ``group_count`` (None: all are one), and ``shadows`` are the rows whose memory another row of
    the same pool stands for. Both columns of ``newest`` and masks are as long as the table.
    """

    def __init__(
        self,
        newest: Floats,
        counting: Mask,
        shadows: Rows,
        group: Rows | None = None,
        group_count: int = 1,
    ) -> None:
        self._newest = newest
        self._counting = counting
        self._all = bool(counting.all())
        self._shadows = shadows
        self._group = group
        self._group_count = group_count

    def aggregates(self, sampled: Mask, stale: Mask) -> list[Aggregate]:
        """One for each group; ``sampled`` and ``stale`` mask the rows that are counted as such."""
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is None
            return self._aggregates(sampled, stale)

    def _aggregates(self, sampled: Mask, stale: Mask) -> list[Aggregate]:
        lines = self._newest[: len(READINGS)]
        sums, counts = self._sums(lines), self._counts(lines)
        memory = np.stack([*lines[:_FREE], self._free()])
        memory[:, self._shadows] = np.nan
        sizes, sized = self._sums(memory), self._counts(memory)
        hottest = self._maxima(lines[_TEMPERATURE])
        devices, stales = self._tally(sampled), self._tally(stale)
        return [
            Aggregate(
                device_count=int(devices[group]),
                stale_count=int(stales[group]),
                total_memory_bytes=_whole(sizes[_TOTAL, group], sized[_TOTAL, group]),
                used_memory_bytes=_whole(sizes[_USED, group], sized[_USED, group]),
                available_memory_bytes=_whole(sizes[_FREE, group], sized[_FREE, group]),
                average_utilization_percent=_mean(
                    sums[_UTILIZATION, group], counts[_UTILIZATION, group]
                ),
                average_temperature_celsius=_mean(
                    sums[_TEMPERATURE, group], counts[_TEMPERATURE, group]
                ),
                maximum_temperature_celsius=_mean(hottest[group], counts[_TEMPERATURE, group] > 0),
                total_power_watts=_mean(sums[_POWER, group], counts[_POWER, group] > 0),
                reporting={name: int(counts[line, group]) for line, name in enumerate(READINGS)},
            )
            for group in range(self._group_count)
        ]

    def _free(self) -> Floats:
        """Total less used and less reserved, of each row; NaN where not told."""
        free: Floats = self._newest[_TOTAL] - self._newest[_USED]
        reserved = self._newest[_RESERVED]
        kept_back = ~np.isnan(reserved)
        if kept_back.any():
            free = np.maximum(np.where(kept_back, free - reserved, free), 0)
        return free

    def _counts(self, lines: Floats) -> NDArray[np.int64]:
        known = ~np.isnan(lines)
        if not self._all:
            known &= self._counting
        if self._group is None:
            # Of a line at a time: along an axis it would add them up as numbers.
            return np.array([[np.count_nonzero(line)] for line in known])
        return np.stack([self._tally(line) for line in known])

    def _sums(self, lines: Floats) -> Floats:
        known = lines if self._all else np.where(self._counting, lines, 0.0)
        if self._group is None:
            sums = known.sum(axis=1)
            if np.isnan(sums).any():
                some = np.isnan(sums)
                sums[some] = np.nansum(known[some], axis=1)
            return sums[:, None]
        count = self._group_count
        filled = np.where(np.isnan(known), 0.0, known)
        return np.stack(
            [np.bincount(self._group, line, count).astype(np.float64) for line in filled]
        )

    def _maxima(self, line: Floats) -> Floats:
        known = line if self._all else np.where(self._counting, line, np.nan)
        if self._group is None:
            return np.fmax.reduce(known, initial=np.nan)[None]
        maxima = np.full(self._group_count, np.nan)
        np.fmax.at(maxima, self._group, known)
        return maxima

    def _tally(self, mask: Mask) -> NDArray[np.int64]:
        if self._group is None:
            return np.array([np.count_nonzero(mask)])
        return np.bincount(self._group[mask], minlength=self._group_count)


def _whole(total: float, count: int) -> int | None:
    return round(float(total)) if count and np.isfinite(total) else None


def _mean(total: float, count: int) -> float | None:
    return float(total) / int(count) if count and np.isfinite(total) else None
