"""Jobs that take several devices each, planned over pools of like devices."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.gang_assignment import assign_gangs
from exo.gpu.vocabulary.errors import InvalidValue


@st.composite
def gangs(draw):
    """Times of some jobs in two or three pools, their sizes, and how many devices the pools have."""
    counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    time = st.floats(0.1, 100.0) | st.just(math.inf)
    row = st.lists(time, min_size=len(counts), max_size=len(counts))
    times = draw(st.lists(row, min_size=1, max_size=8))
    if all(math.isinf(one) for line in times for one in line):
        times[0][0] = 1.0
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(times), max_size=len(times)))
    return times, sizes, counts


@settings(max_examples=60)
@given(gangs())
def test_every_plan_can_be_carried_out_and_ends_when_it_says(case):
    """Rule: no device does two jobs at once, nothing is lost, and no plan beats the bound."""
    times, sizes, counts = case
    plan = assign_gangs(times, sizes, counts, rounds=200)
    ends = []
    for job, (pool, start) in enumerate(zip(plan.pools, plan.starts, strict=True)):
        fits = [
            at
            for at, count in enumerate(counts)
            if sizes[job] <= count and math.isfinite(times[job][at])
        ]
        assert (pool in fits) if fits else pool == -1
        if fits:
            ends.append(start + times[job][pool])
    for pool, count in enumerate(counts):
        moments = [
            (plan.starts[job], sizes[job], times[job][pool])
            for job in range(len(times))
            if plan.pools[job] == pool
        ]
        for at, _, _ in moments:
            taken = sum(size for start, size, length in moments if start <= at < start + length)
            assert taken <= count
    assert plan.makespan == pytest.approx(max(ends, default=0.0))
    assert plan.makespan >= plan.bound * (1 - 1e-6)
    assert sorted(job for jobs in plan.order for job in jobs) == [
        job for job, pool in enumerate(plan.pools) if pool >= 0
    ]


def test_the_same_question_has_the_same_answer():
    times = [[float(3 + job % 5), float(2 + job % 7)] for job in range(20)]
    one, other = (assign_gangs(times, [1, 2] * 10, [3, 4], rounds=500) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("times", "sizes", "counts", "field"),
    [
        ([[1.0, math.nan]], [1], [1, 1], "costs"),
        ([[1.0, -1.0]], [1], [1, 1], "costs"),
        ([[1.0, 2.0]], [0], [1, 1], "sizes"),
        ([[1.0, 2.0]], [1], [1, 0], "counts"),
        ([[1.0, 2.0]], [1], [1], "counts"),
    ],
)
def test_bad_input_is_named(times, sizes, counts, field):
    with pytest.raises(InvalidValue, match=field):
        assign_gangs(times, sizes, counts)
