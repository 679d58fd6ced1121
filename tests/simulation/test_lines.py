"""The line by counts, the lengths that it expects, and the disciplines that are replayed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.counted_line import CountedLine
from exo.gpu.scheduling.expected_length import (
    BURST_SECONDS,
    FIRST_SECONDS,
    UNTRIED_FACTOR,
    ExpectedLength,
)
from exo.gpu.scheduling.job_queue import in_order, place_of
from exo.gpu.simulation.events import EventQueue
from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.replay import DISCIPLINES, Replay, discipline_named, replay
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.lease import Waiter
from exo.gpu.vocabulary.request import Request

DEVICES = 4
jobs = st.lists(
    st.builds(
        Job,
        name=st.just("job"),
        arrived_seconds=st.integers(0, 50).map(float),
        run_seconds=st.integers(0, 40).map(float),
        gpus=st.integers(1, DEVICES + 1),
        group=st.sampled_from("ab"),
    ),
    max_size=25,
)


@settings(max_examples=80)
@given(jobs, st.sampled_from(sorted(DISCIPLINES)))
def test_work_is_conserved_and_nothing_over_committed(some, name):
    """Rule: each job that fits runs once, in full, and never do more run than there are devices."""
    outcomes = Replay(some, DEVICES, DISCIPLINES[name]).run()
    assert len(outcomes) == len(some)
    runs = {job.run_seconds: 0 for job in some}
    ordered = sorted(some, key=lambda job: job.arrived_seconds)
    for job, one in zip(ordered, outcomes, strict=True):
        if job.gpus > DEVICES:
            assert one.refused
            assert one.began_seconds is None
            continue
        assert one.began_seconds >= one.arrived_seconds
        assert one.ended_seconds == pytest.approx(one.began_seconds + job.run_seconds)
        runs[job.run_seconds] += 1
    moments = [one.began_seconds for one in outcomes if one.began_seconds is not None]
    for at in moments:
        held = sum(
            one.gpus
            for one in outcomes
            if one.began_seconds is not None and one.began_seconds <= at < one.ended_seconds
        )
        assert held <= DEVICES


@settings(max_examples=80)
@given(jobs)
def test_nothing_stands_still_while_the_first_would_fit(some):
    """Rule: first come, first served begins in order of arrival, and never waits without need."""
    outcomes = [one for one in Replay(some, DEVICES, DISCIPLINES["fifo"]).run() if not one.refused]
    began = [one.began_seconds for one in outcomes]
    assert began == sorted(began)
    for place, one in enumerate(outcomes):
        before = max([one.arrived_seconds, *began[:place]])
        if one.began_seconds > before:
            held = sum(
                other.gpus
                for other in outcomes[:place]
                if other.began_seconds <= before < other.ended_seconds
            )
            assert held + one.gpus > DEVICES


@settings(max_examples=80)
@given(jobs)
def test_backfilling_by_true_lengths_is_repeatable_and_leaves_nobody_out(some):
    """Rule: the same jobs give the same run."""
    first = Replay(some, DEVICES, DISCIPLINES["fifo-backfill"]).run()
    assert first == Replay(some, DEVICES, DISCIPLINES["fifo-backfill"]).run()
    assert all(one.ended_seconds is not None or one.refused for one in first)


def test_who_passes_the_first():
    """Rule: those that end before it can begin, or take what it will not need; no others."""
    line = CountedLine(4)
    line.join(0, 3, 0.0, 100.0)
    assert line.turn(0.0) == [0]
    line.join(1, 3, 1.0, 50.0)
    line.join(2, 1, 2.0, 200.0)
    line.join(3, 1, 3.0, 99.0)
    # At 100 the first has 4 free and needs 3: one device is to spare, for however long.
    assert line.turn(0.0) == [2]
    assert line.free == 0
    assert len(line) == 2
    line.end(2)
    assert line.turn(1.0) == [3]
    line.end(0)
    line.end(3)
    assert line.turn(100.0) == [1]


def test_nobody_passes_who_would_delay_the_first():
    """Rule: with nothing to spare, longer work waits although a device is free."""
    line = CountedLine(2)
    line.join(0, 1, 0.0, 100.0)
    line.turn(0.0)
    line.join(1, 2, 1.0, 10.0)
    line.join(2, 1, 2.0, 101.0)
    line.join(3, 1, 3.0, 100.0)
    assert line.turn(0.0) == [3]
    strict = CountedLine(2, look_ahead=0)
    strict.join(0, 1, 0.0, 100.0)
    strict.join(1, 2, 1.0, 10.0)
    strict.join(2, 1, 2.0, 1.0)
    assert strict.turn(0.0) == [0]


def test_more_than_there_is_never_stands_in_the_line():
    """Rule: it would stand there for ever."""
    with pytest.raises(InvalidValue, match=r"within 1\.\.2"):
        CountedLine(2).join(0, 3, 0.0, 1.0)


def test_a_length_is_that_of_the_neighbours_in_time():
    """Rule: the same group and about the same time tell most; an unknown group has the default."""
    lengths = ExpectedLength()
    assert lengths.expected_seconds("a", 5, 0.0) == FIRST_SECONDS
    lengths.ended("a", 0, 0.0, 100.0)
    lengths.ended("a", 9, 1000.0, 10_000.0)
    near = lengths.expected_seconds("a", 1, 1.0)
    assert 100 < near < 200
    assert lengths.expected_seconds("a", 8, 999.0) > 5_000
    assert lengths.expected_seconds("b", 1, 1.0) == FIRST_SECONDS


def test_one_of_a_new_burst_is_taken_to_be_short():
    """Rule: with no neighbour within an hour, a fifth of the group's usual length."""
    lengths = ExpectedLength()
    lengths.ended("a", 0, 0.0, 500.0)
    far = lengths.expected_seconds("a", 1, BURST_SECONDS + 1)
    assert far == pytest.approx(UNTRIED_FACTOR * 500)


def test_what_still_runs_is_expected_to_need_twice_as_long():
    """Rule: the note is replaced by the truth, and says which others may change their place."""
    lengths = ExpectedLength()
    lengths.still_running("a", 3, 0.0, 400.0)
    assert lengths.expected_seconds("a", 4, 0.0) == pytest.approx(800)
    low, high = lengths.ended("a", 3, 0.0, 50.0)
    assert low <= 3 <= high
    assert lengths.expected_seconds("a", 4, 0.0) == pytest.approx(50)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(1, 1e6)), max_size=20, unique_by=lambda t: t[0]
    ),
    st.integers(0, 30),
)
def test_an_expected_length_is_within_what_was_seen(seen, number):
    """Rule: a mean of what was seen, a fifth of it at least."""
    lengths = ExpectedLength()
    for other, seconds in seen:
        lengths.ended("a", other, 600.0 * other, seconds)
    found = lengths.expected_seconds("a", number, 600.0 * number)
    if seen:
        assert UNTRIED_FACTOR * min(s for _, s in seen) * 0.999 <= found
        assert found <= max(s for _, s in seen) * 1.001
    assert math.isfinite(found)


def test_less_work_counts_as_having_come_earlier_but_nobody_waits_for_ever():
    """Rule: the order of the line; without lengths it is as it was, and age wins in the end."""
    assert place_of(5.0) == 5.0
    assert place_of(5.0, 1) < place_of(5.0)
    assert place_of(0.0, 0, 60.0) < place_of(0.0, 0, 3600.0)
    assert place_of(0.0, 0, 3600.0) < place_of(1e7, 0, 60.0)
    waiters = [
        Waiter(
            waiter_id=name,
            request=Request(count=count, expected_seconds=length),
            number=number,
        )
        for number, (name, count, length) in enumerate(
            [("long", 1, 9000.0), ("gang", 8, 600.0), ("unknown", 1, None), ("short", 1, 60.0)]
        )
    ]
    assert [one.waiter_id for one in in_order(waiters)] == ["short", "unknown", "gang", "long"]


def test_shortest_first_waits_less_than_first_come():
    """Rule: on a case worked out by hand, 1 h before 10 h."""
    some = [
        Job(name=str(hours), arrived_seconds=0.0, run_seconds=3600.0 * hours) for hours in (10, 1)
    ]
    fifo, shortest = (replay(some, 1, name) for name in ("fifo", "shortest-true"))
    assert fifo.completion_mean_seconds == pytest.approx((10 + 11) / 2 * 3600)
    assert shortest.completion_mean_seconds == pytest.approx((1 + 11) / 2 * 3600)
    assert shortest.makespan_seconds == 11 * 3600
    assert shortest.utilization_ratio == pytest.approx(1)
    assert shortest.waiting_mean_seconds == pytest.approx(1800)
    assert shortest.completion_p50_seconds == pytest.approx(6 * 3600)
    assert shortest.completion_p95_seconds == pytest.approx(10.5 * 3600)
    assert shortest.completion_p50_seconds < shortest.completion_p999_seconds <= 11 * 3600


def test_an_unknown_discipline_is_answered_with_those_there_are():
    """Rule: the error lists the known names."""
    with pytest.raises(UnknownName, match="fifo-backfill"):
        discipline_named("lifo")


def test_events_of_one_moment_come_together_in_their_order():
    """Rule: time never goes back, and what is planned for the past happens now."""
    events: EventQueue[str] = EventQueue()
    events.plan(2.0, "b")
    events.plan(1.0, "a")
    events.plan(2.0, "c")
    assert events.next_moment() == ["a"]
    events.plan(0.0, "late")
    assert events.next_moment() == ["late"]
    assert events.now_seconds == 1.0
    assert events.next_moment() == ["b", "c"]
    assert not events
    assert events.next_moment() == []
