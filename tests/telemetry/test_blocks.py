"""The codec of the history: what goes in comes out to half a quantum, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from histories import realistic
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from exo.gpu.telemetry.store.blocks import SAMPLES, STEPS, Layout, pack, unpack
from exo.gpu.vocabulary.errors import StoreDamaged
from exo.gpu.vocabulary.metrics import SERIES

SMALL = Layout(("coarse", "fine", "whole"), (1, 1000, 1))
EVERYDAY = st.floats(-1e6, 1e6) | st.just(float("nan"))
ANYTHING = st.floats(width=64)  # NaN, infinities and subnormal numbers too
TIMES = st.lists(st.integers(0, 253_402_300_799_000), min_size=1, max_size=40)


@st.composite
def tables(draw, cells):
    times = np.array(draw(TIMES), dtype=np.int64)
    values = draw(arrays.arrays(np.float64, (len(times), 3), elements=cells))
    starts = sorted({0, *draw(st.sets(st.integers(0, len(times) - 1), max_size=4))})
    return times, values, starts


def runs(times, starts):
    return zip(starts, [*starts[1:], len(times)], strict=True)


@given(tables(EVERYDAY))
def test_everyday_values_come_back_to_half_a_quantum(table):
    """Rule: times are exact, unknown stays unknown, and no value is off by more than half a quantum."""
    times, values, starts = table
    blocks = pack(SMALL, times, values, starts)
    assert len(blocks) == len(starts)
    for block, (begin, end) in zip(blocks, runs(times, starts), strict=True):
        got_times, got = unpack(SMALL, block)
        expected = values[begin:end]
        assert got_times.tolist() == times[begin:end].tolist()
        assert (np.isnan(got) == np.isnan(expected)).all()
        assert (np.nan_to_num(np.abs(got - expected)) * SMALL.steps <= 0.5 + 1e-6).all()


@given(tables(ANYTHING))
def test_what_has_no_quantum_is_kept_exactly(table):
    """Rule: a column with a huge value or an infinity in it is kept bit for bit, NaN as unknown."""
    times, values, starts = table
    for block, (begin, end) in zip(
        pack(SMALL, times, values, starts), runs(times, starts), strict=True
    ):
        _, got = unpack(SMALL, block)
        for column, steps in enumerate(SMALL.steps):
            expected = values[begin:end, column]
            known = ~np.isnan(expected)
            assert (np.isnan(got[:, column]) == ~known).all()
            with np.errstate(over="ignore"):
                is_odd = (np.abs(expected[known] * steps) >= 2.0**51).any()
            if is_odd:
                assert (got[known, column] == expected[known]).all()
            else:
                assert (np.abs(got[known, column] - expected[known]) * steps <= 0.5 + 1e-6).all()


@given(tables(EVERYDAY))
def test_runs_packed_together_are_those_packed_alone(table):
    """Rule: no run depends on its neighbours."""
    times, values, starts = table
    alone = [pack(SMALL, times[b:e], values[b:e], [0])[0] for b, e in runs(times, starts)]
    assert pack(SMALL, times, values, starts) == alone


@given(tables(EVERYDAY), st.lists(st.integers(0, 2), unique=True))
def test_wanted_columns_are_the_same_as_among_all(table, wanted):
    """Rule: asking for some columns gives these, in the order asked for."""
    times, values, _ = table
    (block,) = pack(SMALL, times, values, [0])
    everything = unpack(SMALL, block)[1]
    assert np.array_equal(unpack(SMALL, block, wanted)[1], everything[:, wanted], equal_nan=True)


def test_bytes_are_exact_up_to_petabytes():
    """Rule: amounts of memory lose nothing."""
    values = np.full((2, len(SAMPLES.names)), np.nan)
    values[:, 0] = 2**50 + 1, 3
    _, got = unpack(SAMPLES, pack(SAMPLES, np.array([0, 1]), values, [0])[0])
    assert got[:, 0].tolist() == [2**50 + 1, 3]


def test_a_decimal_comes_back_as_it_is_written():
    """Rule: a value of whole quanta is the same float again, not one beside it."""
    watts = np.round(np.arange(0, 700, 0.07), 2)
    values = np.full((len(watts), len(SAMPLES.names)), np.nan)
    place = SAMPLES.names.index("power_watts")
    values[:, place] = watts
    _, got = unpack(SAMPLES, pack(SAMPLES, np.arange(len(watts)), values, [0])[0])
    assert got[:, place].tolist() == watts.tolist()


def test_every_number_of_a_sample_has_its_place_on_disk():
    """Rule: a reading that is added to samples is added at the end of the table here as well."""
    assert set(STEPS) == set(SERIES)
    assert list(STEPS)[:3] == [
        "memory_used_bytes",
        "memory_total_bytes",
        "compute_utilization_percent",
    ]


def test_a_block_of_fewer_columns_is_read_by_a_later_release():
    """Rule: a layout may grow at its end, and what was not there is unknown."""
    times, values = np.array([1, 2]), np.array([[1.0, 2.0], [3.0, 4.0]])
    (block,) = pack(Layout(("coarse", "fine"), (1, 1000)), times, values, [0])
    got = unpack(SMALL, block)[1]
    assert got[:, :2].tolist() == values.tolist()
    assert np.isnan(got[:, 2]).all()


def test_a_reading_of_a_real_device_takes_less_than_a_byte_or_two():
    """Rule: a minute of noisy readings is far below 4 bytes for each; unknown ones take nothing."""
    rows = [
        [np.nan if (value := getattr(sample, name)) is None else value for name in SAMPLES.names]
        for sample in realistic("cuda:0", 60)
    ]
    values = np.array(rows, dtype=np.float64)
    times = np.arange(60) * 1000
    (block,) = pack(SAMPLES, times, values, [0])
    assert len(block) / np.count_nonzero(~np.isnan(values)) < 2
    (empty,) = pack(SAMPLES, times, np.full_like(values, np.nan), [0])
    assert len(empty) < 60


def test_nothing_makes_no_block():
    """Rule: no rows, no blocks."""
    assert pack(SMALL, np.empty(0, dtype=np.int64), np.empty((0, 3)), []) == []


@given(st.binary(max_size=60))
def test_bytes_that_are_no_block_are_refused(data):
    """Rule: whatever is on the disk, reading it gives a block or our own error."""
    with pytest.raises(StoreDamaged):
        unpack(SMALL, data)


@given(tables(EVERYDAY), st.data())
def test_a_damaged_block_is_refused(table, data):
    """Rule: one flipped bit is found by the checksum, or it was one that carries nothing."""
    times, values, _ = table
    (block,) = pack(SMALL, times, values, [0])
    broken = bytearray(block)
    broken[data.draw(st.integers(0, len(block) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        got = unpack(SMALL, bytes(broken))
    except StoreDamaged:
        return
    expected = unpack(SMALL, block)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, expected, strict=True))


def test_a_changed_byte_of_the_content_is_refused():
    """Rule: damage in the middle of a block never turns into other values."""
    times, values = np.arange(60), np.random.default_rng(1).normal(200, 9, (60, 3))
    (block,) = pack(SMALL, times, values, [0])
    for place in range(0, len(block) - 8):
        broken = bytearray(block)
        broken[place] ^= 0xFF
        with pytest.raises(StoreDamaged):
            unpack(SMALL, bytes(broken))
