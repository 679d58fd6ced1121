"""Charts of block characters."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.cli.top.chart import chart

VALUES = st.lists(st.none() | st.floats(), max_size=40)


def test_a_ramp_climbs_through_all_blocks():
    """Rule: the lowest value is the lowest block, the highest a full one, what is beyond is cut."""
    ramp = [-5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 99.0]
    assert chart(ramp, width=10, low=0.0, high=7.0) == ["▁▁▂▃▄▅▆▇██"]


def test_higher_charts_have_finer_steps():
    """Rule: lines above each other are one column."""
    assert chart([0.0, 50.0, 100.0], width=3, height=2, low=0.0, high=100.0) == [" ▁█", "▁██"]


def test_unknown_is_empty_and_zero_is_not():
    """Rule: a gap is told apart from a measured zero; NaN and infinities are no values."""
    values = [None, 0.0, math.nan, math.inf, -math.inf]
    assert chart(values, width=6, low=0.0, high=1.0) == ["  ▁   "]


def test_the_newest_is_at_the_right():
    """Rule: what does not fit is the oldest."""
    assert chart([1.0, 1.0, 0.0], width=2, low=0.0, high=1.0) == ["█▁"]
    assert chart([1.0], width=0, low=0.0, high=1.0) == [""]


def test_a_scale_without_extent_is_flat():
    """Rule: where lowest and highest are the same, every value is the lowest."""
    assert chart([3.0], width=1, low=0.0, high=0.0) == ["▁"]


@given(VALUES, st.integers(1, 30), st.integers(1, 6))
def test_the_form_is_always_the_same(values, width, height):
    """Rule: so many lines of so many characters, and a column for each value that is known."""
    lines = chart(values, width=width, height=height, low=0.0, high=100.0)
    assert [len(line) for line in lines] == [width] * height
    shown = ([None] * width + values)[-width:]
    for column, value in enumerate(shown):
        known = value is not None and math.isfinite(value)
        assert (lines[-1][column] != " ") == known
