"""Statistics over a window of received values: pure, all devices of a group at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.figures import Statistics
from exo.gpu.telemetry.table.packed import Floats, Mask

GAP_CADENCES = 3.0
"""A hole of more than so many cadences is not integrated over: nobody knows what was in it."""


class Window:
    """A line for each device: its known values of one reading by time of receipt, NaN behind them.

    ``received_at`` and ``values`` come in any order within a line; what lies outside
    ``first..last`` (seconds on the same clock, both included) is left out. The cadence of a device
    is ``cadence_seconds``, else the (lower) median of the times between its neighbouring values
    that differ in time.
    """

    def __init__(
        self,
        received_at: Floats,
        values: Floats,
        first: float,
        last: float,
        cadence_seconds: float | None = None,
    ) -> None:
        with np.errstate(invalid="ignore"):  # what was never received may be any number
            inside = ~np.isnan(values) & (received_at >= first) & (received_at <= last)
        times = np.where(inside, received_at, np.inf)
        order = np.argsort(times, axis=1, kind="stable")
        self._times = np.take_along_axis(times, order, axis=1)
        self._values = np.take_along_axis(np.where(inside, values, np.nan), order, axis=1)
        self._known: Mask = np.isfinite(self._times)
        self._cadence_seconds = cadence_seconds

    def statistics(self, metric: str, window_seconds: float | None) -> Statistics:
        """All figures of :class:`Statistics`."""
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite
            return self._statistics(metric, window_seconds)

    def _statistics(self, metric: str, window_seconds: float | None) -> Statistics:
        values = self._values[self._known]
        devices = int(np.count_nonzero(self._known.any(axis=1)))
        if not devices:
            return Statistics(metric=metric, window_seconds=window_seconds, device_count=0, count=0)
        p50, p95 = np.percentile(values, (50, 95)).tolist()
        integrals, covered, gaps = self._integrate()
        means = integrals[covered > 0] / covered[covered > 0]
        weighted = float(integrals.sum() / covered.sum()) if len(means) else None
        return Statistics(
            metric=metric,
            window_seconds=window_seconds,
            device_count=devices,
            count=len(values),
            mean=float(values.mean()),
            minimum=float(values.min()),
            maximum=float(values.max()),
            p50=p50,
            p95=p95,
            slope_per_second=self._slope(),
            time_weighted_mean=weighted,
            sum_of_means=float(means.sum()) if len(means) else None,
            covered_seconds=float(covered.sum()),
            gap_count=gaps,
        )

    def _integrate(self) -> tuple[Floats, Floats, int]:
        """For each line the trapezoid integral and the seconds under it; and all holes."""
        pairs = self._known[:, 1:]
        times = np.where(self._known, self._times, 0.0)
        values = np.where(self._known, self._values, 0.0)
        steps = np.where(pairs, np.diff(times, axis=1), 0.0)
        longest = GAP_CADENCES * self._cadences(steps)
        # A time is a float: three cadences exactly must not be a hole for the last bit of one.
        covered = pairs & (steps <= longest[:, None] * (1 + 1e-9))
        seconds = np.where(covered, steps, 0.0)
        middles = values[:, 1:] / 2 + values[:, :-1] / 2
        integrals = (seconds * middles).sum(axis=1)
        return integrals, seconds.sum(axis=1), int(np.count_nonzero(pairs & ~covered))

    def _cadences(self, steps: Floats) -> Floats:
        if self._cadence_seconds is not None:
            return np.full(len(steps), self._cadence_seconds)
        counts = np.count_nonzero(steps > 0, axis=1)
        lower_median: NDArray[np.int64] = np.maximum(counts - 1, 0) // 2
        padded = np.hstack([np.where(steps > 0, steps, np.inf), np.full((len(steps), 1), np.inf)])
        cadences = np.take_along_axis(np.sort(padded, axis=1), lower_median[:, None], axis=1)[:, 0]
        return np.where(counts > 0, cadences, 0.0)

    def _slope(self) -> float | None:
        """Least squares over all lines, each around its own middle; None without two times."""
        counts = np.maximum(np.count_nonzero(self._known, axis=1), 1)[:, None]
        # Counted from its first value, a time keeps its small digits.
        times = np.where(self._known, self._times - self._times[:, :1], 0.0)
        values = np.where(self._known, self._values, 0.0)
        apart = np.where(self._known, times - times.sum(axis=1, keepdims=True) / counts, 0.0)
        rises = values - values.sum(axis=1, keepdims=True) / counts
        spread = float((apart * apart).sum())
        return float((apart * rises).sum() / spread) if spread > 0 else None
