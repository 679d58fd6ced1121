"""Minima, means, maxima and counts: of minutes, of merged minutes, and of the points of a chart.

Pure arithmetic over columns. A rollup is four numbers, in the order of :data:`PARTS`; where
nothing is known the count is 0 and the others are NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.telemetry.store.blocks import STEPS, Layout
from exo.gpu.vocabulary.errors import StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]

PARTS = ("minimum", "mean", "maximum", "count")

# A mean falls between the quanta of what it is a mean of.
_MEAN_STEPS = 10

_MASK_BYTES = 8

HOURS = Layout(
    tuple(f"{name}.{part}" for name in STEPS for part in PARTS),
    tuple(factor for steps in STEPS.values() for factor in (steps, steps * _MEAN_STEPS, steps, 1)),
)
"""How the rollups of an hour are packed: each part of each reading is a column, a minute a row."""


def summarize(values: Numbers, starts: Sequence[int] | NDArray[np.intp]) -> Numbers:
    """Roll up each run of rows that begins at one of ``starts``: runs x columns x parts."""
    import numpy as np

    known = ~np.isnan(values)
    counts = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
    rolled = np.empty((*counts.shape, len(PARTS)))
    rolled[..., 0] = np.fmin.reduceat(values, starts, axis=0)
    rolled[..., 2] = np.fmax.reduceat(values, starts, axis=0)
    rolled[..., 3] = counts
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
        rolled[..., 1] = _within(sums / np.where(counts, counts, np.nan), rolled)
    return rolled


def combine(rolled: Numbers, starts: Sequence[int] | NDArray[np.intp]) -> Numbers:
    """Merge each run of rollups that begins at one of ``starts``, as if made of all at once."""
    import numpy as np

    counts = rolled[..., 3]
    merged = np.empty((len(starts), *rolled.shape[1:]))
    merged[..., 0] = np.fmin.reduceat(rolled[..., 0], starts, axis=0)
    merged[..., 2] = np.fmax.reduceat(rolled[..., 2], starts, axis=0)
    merged[..., 3] = np.add.reduceat(counts, starts, axis=0)
    totals = merged[..., 3]
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = np.where(counts > 0, rolled[..., 1] * counts, 0.0)
        sums = np.add.reduceat(weighted, starts, axis=0)
        merged[..., 1] = _within(sums / np.where(totals, totals, np.nan), merged)
    return merged


def merge_minutes(minutes: Whole, rolled: Numbers) -> tuple[Whole, Numbers]:
    """Sort rollups by minute, and merge those of the same minute into one."""
    import numpy as np

    if not len(minutes):
        return minutes, rolled
    order = np.argsort(minutes, kind="stable")
    minutes, rolled = minutes[order], rolled[order]
    starts = run_starts(minutes)
    return (
        (minutes, rolled)
        if len(starts) == len(minutes)
        else (
            minutes[starts],
            combine(rolled, starts),
        )
    )


def run_starts(keys: Whole) -> NDArray[np.intp]:
    """Where each run of equal keys begins; the keys are sorted."""
    import numpy as np

    return np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))


def resample(places: Whole, rolled: Numbers, points: int) -> Numbers:
    """Merge rollups into ``points`` points: ``places`` says of each to which it belongs, sorted.

    A point to which none belongs has the count 0 and is otherwise NaN.
    """
    import numpy as np

    result = np.full((points, len(PARTS)), np.nan)
    result[:, 3] = 0
    if len(places):
        starts = run_starts(places)
        result[places[starts]] = combine(rolled, starts)
    return result


def flatten(rolled: Numbers) -> Numbers:
    """Rollups as the rows of :data:`HOURS`."""
    import numpy as np

    flat = rolled.reshape(len(rolled), -1).copy()
    counts = flat[:, 3 :: len(PARTS)]
    counts[counts == 0] = np.nan  # an unknown column takes no space
    return flat


def unflatten(rows: Numbers) -> Numbers:
    """The reverse of :func:`flatten`."""
    import numpy as np

    rolled = rows.reshape(len(rows), -1, len(PARTS))
    rolled[..., 3] = np.where(np.isnan(rolled[..., 3]), 0, rolled[..., 3])
    rolled[..., 1] = _within(rolled[..., 1], rolled)
    return rolled


def pack_minute(rolled: Numbers) -> bytes:
    """The rollups of one device's readings in one minute, quickly: a mask, then what is known."""
    known = rolled[:, 3] > 0
    mask = sum(1 << place for place in known.nonzero()[0].tolist())
    return mask.to_bytes(_MASK_BYTES, "little") + rolled[known].tobytes()


def unpack_minute(data: bytes) -> Numbers:
    """The reverse of :func:`pack_minute`.

    Raises:
        StoreDamaged: for bytes that it did not make.

    """
    import numpy as np

    mask = int.from_bytes(data[:_MASK_BYTES], "little")
    places = [place for place in range(len(STEPS)) if mask >> place & 1]
    rolled = np.full((len(STEPS), len(PARTS)), np.nan)
    rolled[:, 3] = 0
    if len(data) != _MASK_BYTES + len(places) * len(PARTS) * rolled.itemsize:
        raise StoreDamaged(f"a minute's rollups of {len(data)} bytes cannot be read")
    known = np.frombuffer(data, np.float64, -1, _MASK_BYTES)
    rolled[places] = known.reshape(-1, len(PARTS))
    return rolled


def _within(means: Numbers, rolled: Numbers) -> Numbers:
    """Keep a mean between its minimum and maximum, whatever rounding and overflow did to it."""
    import numpy as np

    return np.clip(means, rolled[..., 0], rolled[..., 2])
