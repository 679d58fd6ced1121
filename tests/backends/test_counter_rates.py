"""Rates of counters: two readings, resets, and readings that come too fast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.backends.counter_rates import SHORTEST_SECONDS, CounterRates
from exo.gpu.vocabulary.errors import ReadingMissing

KEY = ("level_zero:0", "energy")


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def started(value: float) -> tuple[CounterRates, Clock]:
    """A counter that was told once."""
    clock = Clock()
    rates = CounterRates(clock)
    with pytest.raises(ReadingMissing, match="two readings"):
        rates.rate(KEY, value)
    return rates, clock


def test_a_rate_needs_two_readings() -> None:
    """Rule: the first reading is missing; the second tells the growth per second and over what."""
    rates, clock = started(50)
    clock.now += 2
    assert rates.rate(KEY, 80) == (15, 2)
    clock.now += 1
    assert rates.rate(KEY, 80) == (0, 1)


def test_a_step_back_is_a_reset() -> None:
    """Rule: a counter that falls gives no rate, and counts from its new value."""
    rates, clock = started(1000)
    clock.now += 1
    with pytest.raises(ReadingMissing, match="stepped back"):
        rates.rate(KEY, 10)
    clock.now += 1
    assert rates.rate(KEY, 13).per_second == 3


def test_readings_in_quick_succession_repeat_the_rate() -> None:
    """Rule: within the shortest time the rate before stands, and without one it is missing."""
    rates, clock = started(0)
    with pytest.raises(ReadingMissing, match="too close"):
        rates.rate(KEY, 1)
    clock.now += 1
    assert rates.rate(KEY, 5).per_second == 5
    clock.now += SHORTEST_SECONDS / 2
    assert rates.rate(KEY, 500).per_second == 5


def test_what_is_gone_is_forgotten() -> None:
    """Rule: counters under a prefix are dropped unless named; others stay."""
    rates, clock = started(0)
    for client in ("1", "2"):
        with pytest.raises(ReadingMissing):
            rates.rate(("rocm:0", "engine", client), 0)
    rates.forget(("rocm:0", "engine"), but={("rocm:0", "engine", "2")})
    clock.now += 1
    assert rates.rate(KEY, 1).per_second == 1
    assert rates.rate(("rocm:0", "engine", "2"), 4).per_second == 4
    with pytest.raises(ReadingMissing, match="the first"):
        rates.rate(("rocm:0", "engine", "1"), 4)


def test_a_counter_that_is_dropped_begins_anew() -> None:
    """Rule: after drop() the next reading is the first; dropping an unknown one is harmless."""
    rates, clock = started(0)
    rates.drop(KEY)
    rates.drop(("never", "told"))
    clock.now += 1
    with pytest.raises(ReadingMissing, match="the first"):
        rates.rate(KEY, 1)


def test_a_gap_is_no_rate() -> None:
    """Rule: after longer than the caller allows there is no rate; the time may come with the value."""
    rates, clock = started(0)
    with pytest.raises(ReadingMissing, match="a gap"):
        rates.rate(KEY, 100, at_seconds=clock.now + 31, longest_seconds=30)
    assert rates.rate(KEY, 130, at_seconds=clock.now + 61, longest_seconds=30) == (1, 30)


@given(steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2**63)), min_size=1, max_size=20))
def test_no_rate_is_negative(steps: list[tuple[float, int]]) -> None:
    """Rule: whatever counter and clock do, a rate is missing or not below 0."""
    clock = Clock()
    rates = CounterRates(clock)
    for seconds, value in steps:
        clock.now += seconds
        try:
            assert rates.rate(KEY, value).per_second >= 0
        except ReadingMissing:
            continue
