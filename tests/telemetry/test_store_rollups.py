"""Rollups: arithmetic that does not depend on how the samples were cut into parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from exo.gpu.telemetry.store.blocks import STEPS, pack, unpack
from exo.gpu.telemetry.store.rollups import (
    HOURS,
    PARTS,
    combine,
    flatten,
    merge_minutes,
    pack_minute,
    resample,
    summarize,
    unflatten,
    unpack_minute,
)
from exo.gpu.vocabulary.errors import StoreDamaged

CELLS = st.floats(-1e9, 1e9) | st.just(float("nan"))


@st.composite
def columns(draw):
    rows = draw(st.integers(1, 30))
    values = draw(arrays.arrays(np.float64, (rows, 2), elements=CELLS))
    starts = sorted({0, *draw(st.sets(st.integers(0, rows - 1), max_size=5))})
    return values, starts


@given(columns())
def test_rollups_of_parts_combine_to_the_rollup_of_all(data):
    """Rule: minimum, maximum and count are exact, the mean is up to rounding, unknown is none."""
    values, starts = data
    whole = summarize(values, [0])[0]
    merged = combine(summarize(values, starts), [0])[0]
    for column in range(2):
        known = values[:, column][~np.isnan(values[:, column])]
        assert merged[column, 3] == whole[column, 3] == len(known)
        if not len(known):
            assert np.isnan(merged[column, :3]).all()
            continue
        assert merged[column, 0] == whole[column, 0] == known.min()
        assert merged[column, 2] == whole[column, 2] == known.max()
        assert merged[column, 0] <= merged[column, 1] <= merged[column, 2]
        assert merged[column, 1] == pytest.approx(known.mean(), abs=1e-6)


def test_a_mean_of_the_largest_numbers_is_one_of_them():
    """Rule: a sum that overflows leaves a mean between minimum and maximum."""
    rolled = summarize(np.full((4, 1), 1.5e308), [0])
    assert rolled[0, 0].tolist() == [1.5e308, 1.5e308, 1.5e308, 4]
    assert combine(np.concatenate((rolled, rolled)), [0])[0, 0, 1] == 1.5e308


def some_rollups(minutes: int) -> np.ndarray:
    random = np.random.default_rng(1)
    values = random.normal(200, 5, (minutes * 60, len(STEPS)))
    values[:, 5] = np.nan
    values[:60, 3] = np.nan
    return summarize(values, range(0, minutes * 60, 60))


def test_a_minute_is_kept_exactly():
    """Rule: the quick form of a minute's rollups loses nothing."""
    for rolled in some_rollups(3):
        assert np.array_equal(unpack_minute(pack_minute(rolled)), rolled, equal_nan=True)


def test_an_hour_is_kept_to_the_quantum():
    """Rule: packed, a rollup is exact to half a quantum, in order, and takes few bytes."""
    rolled = some_rollups(60)
    (block,) = pack(HOURS, np.arange(60) * 60_000, flatten(rolled), [0])
    got = unflatten(unpack(HOURS, block)[1])
    assert (got[..., 3] == rolled[..., 3]).all()
    assert (np.isnan(got) == np.isnan(rolled)).all()
    off = np.abs(got - rolled)[..., :3] * np.array(list(STEPS.values()))[:, None]
    assert np.nanmax(off) <= 0.5 + 1e-6
    known = rolled[..., 3] > 0
    assert (got[known][:, 0] <= got[known][:, 1]).all()
    assert (got[known][:, 1] <= got[known][:, 2]).all()
    assert len(block) / np.count_nonzero(known) < 60


def test_minutes_are_sorted_and_equal_ones_merged():
    """Rule: after a clock was set back there is still one rollup for each minute, in order."""
    rolled = summarize(np.array([[1.0], [2.0], [9.0]]), [0, 1, 2])
    minutes, merged = merge_minutes(np.array([7, 3, 7]), rolled)
    assert minutes.tolist() == [3, 7]
    assert merged[:, 0].tolist() == [[2, 2, 2, 1], [1, 5, 9, 2]]


def test_points_without_anything_are_unknown():
    """Rule: a gap stays a gap."""
    rolled = summarize(np.array([[1.0], [3.0]]), [0, 1])[:, 0]
    points = resample(np.array([2, 2]), rolled, 4)
    assert points[:, 3].tolist() == [0, 0, 2, 0]
    assert points[2].tolist() == [1, 2, 3, 2]
    assert np.isnan(points[[0, 1, 3], :3]).all()
    assert len(PARTS) == 4


def test_bytes_that_are_no_minute_are_refused():
    """Rule: whatever is on the disk, reading it gives rollups or our own error."""
    with pytest.raises(StoreDamaged):
        unpack_minute(pack_minute(some_rollups(1)[0])[:-3])
    with pytest.raises(StoreDamaged):
        unpack_minute(pack_minute(some_rollups(1)[0])[:-32])
