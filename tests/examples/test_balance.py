"""Speeds, busy shares and balance follow from the records of the tiles alone."""

import pytest
from balance import Record, statistics
from hypothesis import given
from hypothesis import strategies as st


def record(tile, device_id, slot, started_at, ended_at, iterations):
    return Record(tile, device_id, slot, started_at, ended_at, iterations)


def test_slots_that_never_wait_have_balance_one():
    """A fast and a slow device, both busy from start to end: no better order exists."""
    records = [record(0, "fast:0", 0, 10.0, 14.0, 400), record(1, "slow:0", 0, 10.0, 14.0, 40)]
    figures = statistics(records, {"fast:0": 1, "slow:0": 1}, 10.0)
    assert figures.makespan_seconds == 4.0
    assert figures.balance == pytest.approx(1.0)
    assert [share.busy_ratio for share in figures.devices] == [1.0, 1.0]
    assert [share.speed for share in figures.devices] == [100.0, 10.0]


def test_a_fast_device_that_waits_shows_in_the_balance():
    """Half of the work each, at 100 and 10 iterations/s: 5 s at 110/s for 100 iterations."""
    records = [record(0, "fast:0", 0, 0.0, 0.5, 50), record(1, "slow:0", 0, 0.0, 5.0, 50)]
    figures = statistics(records, {"fast:0": 1, "slow:0": 1}, 0.0)
    assert figures.balance == pytest.approx(5.0 * 110 / 100)
    assert figures.devices[0].busy_ratio == pytest.approx(0.1)


def test_the_speed_of_a_device_is_the_sum_of_its_slots():
    """Two slots of the host at 10 and 20 iterations/s are a device of 30."""
    records = [record(0, "cpu:0", 0, 0.0, 1.0, 10), record(1, "cpu:0", 1, 0.0, 1.0, 20)]
    (share,) = statistics(records, {"cpu:0": 2}, 0.0).devices
    assert (share.speed, share.busy_ratio, share.tiles) == (30.0, 1.0, 2)


def test_a_device_without_work_is_listed_as_idle():
    """It showed no speed, so it adds none; its line says 0 tiles."""
    figures = statistics([record(0, "a", 0, 0.0, 1.0, 10)], {"a": 1, "b": 1}, 0.0)
    idle = figures.devices[1]
    assert (idle.tiles, idle.speed, idle.busy_ratio) == (0, 0.0, 0.0)


def test_waiting_before_the_first_tile_counts():
    """The makespan begins when the phase does, not with the first tile."""
    figures = statistics([record(0, "a", 0, 1.0, 2.0, 10)], {"a": 1}, 0.0)
    assert figures.makespan_seconds == 2.0
    assert figures.balance == pytest.approx(2.0)


lanes = st.lists(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 10**9)), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


@given(lanes)
def test_no_work_is_lost_and_balance_is_at_least_one(slots):
    """Whatever the lanes did back to back: all iterations are counted, and 1 is the bound."""
    records, tile = [], 0
    for slot, done in enumerate(slots):
        clock = 0.0
        for seconds, iterations in done:
            records.append(record(tile, "a", slot, clock, clock + seconds, iterations))
            clock, tile = clock + seconds, tile + 1
    figures = statistics(records, {"a": len(slots)}, 0.0)
    assert figures.iterations == sum(record.iterations for record in records)
    assert sum(share.tiles for share in figures.devices) == tile
    assert figures.balance >= 1 - 1e-9
