"""The schedule on a virtual clock: no drift, no call twice, nothing piled up, retries in bounds."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.telemetry.sampling.schedule import (
    LONGEST_BACKOFF_SECONDS,
    SHORTEST_CADENCE_SECONDS,
    SLEEPING_CADENCE_SECONDS,
    Schedule,
)
from exo.gpu.vocabulary.errors import InvalidValue

START = 1000.0


def made(**options: float) -> Schedule:
    return Schedule(jitter=random.Random(7).random, **options)


def due(schedule: Schedule) -> float:
    """When there is something to do next, which there must be."""
    at = schedule.next_at()
    assert at is not None
    return at


def ask(schedule: Schedule, now: float) -> list[str]:
    return [tick.device_id for tick in schedule.turn(now).ask]


@given(
    cadence=st.floats(SHORTEST_CADENCE_SECONDS, 100),
    takes=st.lists(st.floats(0, 0.4), min_size=50, max_size=50),
)
def test_ticks_do_not_drift(cadence: float, takes: list[float]) -> None:
    """Rule: the n-th tick is n cadences after the first, however long each call took."""
    schedule = made(cadence_seconds=cadence)
    schedule.add("a", START)
    for number, share in enumerate(takes):
        at = due(schedule)
        assert at == pytest.approx(START + number * cadence, abs=1e-9 * (number + 1) * cadence)
        assert ask(schedule, at) == ["a"]
        schedule.answered("a", at + share * cadence)


@given(
    lateness=st.lists(st.floats(0, 5), min_size=1, max_size=40),
    cadence=st.sampled_from([0.1, 0.3, 0.7, 1.0, 3.0]),
)
def test_missed_ticks_are_skipped(lateness: list[float], cadence: float) -> None:
    """Rule: whoever comes late asks once, and the next tick is on the grid, half a cadence off."""
    schedule = made(cadence_seconds=cadence)
    schedule.add("a", START)
    for late in lateness:
        now = due(schedule) + late
        assert ask(schedule, now) == ["a"]
        assert ask(schedule, now) == []
        schedule.answered("a", now)
        following = due(schedule)
        assert 0.499 * cadence < following - now < 1.501 * cadence
        off = math.remainder(following - START, cadence)
        assert off == pytest.approx(0, abs=1e-6)


def test_a_call_longer_than_the_cadence_skips_its_ticks() -> None:
    """Rule: while a call is under way its device is not due; then it is at the next tick."""
    schedule = made(cadence_seconds=1, deadline_seconds=60)
    schedule.add("a", START)
    assert ask(schedule, START) == ["a"]
    assert ask(schedule, START + 2.5) == []
    schedule.answered("a", START + 2.5)
    assert due(schedule) == START + 3


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_no_device_is_asked_twice_at_once_and_all_get_their_turn(seed: int, count: int) -> None:
    """Rule: whatever calls, failures, sleep and pauses do, a device has one call at a time, and
    those that answer are asked as often as one another."""
    chance = random.Random(seed)
    schedule = Schedule(jitter=chance.random, deadline_seconds=2)
    names = [f"gpu:{place}" for place in range(count)]
    sound = [name for name in names if chance.random() < 0.7]
    for name in names:
        schedule.add(name, START)
    running: dict[str, float] = {}
    asked = dict.fromkeys(names, 0)
    now = START
    while now < START + 60:
        for name, ends in sorted(running.items(), key=lambda item: item[1]):
            if ends <= now:
                del running[name]
                bad = name not in sound and chance.random() < 0.5
                asleep = name not in sound and chance.random() < 0.3
                schedule.answered(name, now, failed=bad, sleeping=asleep)
        turn = schedule.turn(now)
        for tick in turn.ask:
            assert tick.device_id not in running
            asked[tick.device_id] += 1
            long = tick.device_id not in sound and chance.random() < 0.2
            running[tick.device_id] = now + (chance.uniform(2, 9) if long else 0.01)
        assert set(turn.overdue) <= set(running)
        now += 0.05
    counts = [asked[name] for name in sound]
    assert max(counts, default=0) - min(counts, default=0) <= 1
    assert all(59 <= number <= 61 for number in counts)


@given(
    failures=st.integers(1, 80),
    cadence=st.floats(SHORTEST_CADENCE_SECONDS, 100),
    jitter=st.floats(0, 1),
)
def test_retries_wait_longer_within_bounds(failures: int, cadence: float, jitter: float) -> None:
    """Rule: a failing device waits at least a cadence and at most the longest back-off."""
    schedule = Schedule(jitter=lambda: jitter, cadence_seconds=cadence, deadline_seconds=1)
    schedule.add("a", START)
    waits: list[float] = []
    for _ in range(failures):
        now = due(schedule)
        assert ask(schedule, now) == ["a"]
        schedule.answered("a", now, failed=True)
        waits.append(due(schedule) - now)
    most = max(cadence, LONGEST_BACKOFF_SECONDS)
    assert all(cadence * 0.999999 <= wait <= most * 1.000001 for wait in waits)
    assert waits == pytest.approx(sorted(waits), rel=1e-6)


def test_retries_are_spread_and_end_with_a_success() -> None:
    """Rule: two devices that fail together are retried apart; one good answer returns to the grid."""
    schedule = made()
    for name in ("a", "b"):
        schedule.add(name, START)
    schedule.turn(START)
    for name in ("a", "b"):
        schedule.answered(name, START, failed=True)
    first = due(schedule)
    (name,) = ask(schedule, first)
    schedule.answered(name, first)
    later = due(schedule)
    assert ask(schedule, later) == ["b" if name == "a" else "a"]
    assert later > first
    assert due(schedule) == START + 2


def test_a_call_that_outlasts_its_deadline_is_overdue_once() -> None:
    """Rule: it is told once, its device is not asked meanwhile, and its late answer is a failure."""
    schedule = made(deadline_seconds=2)
    schedule.add("a", START)
    schedule.turn(START)
    assert schedule.turn(START + 1.99).overdue == []
    assert due(schedule) == START + 2
    assert schedule.turn(START + 2).overdue == ["a"]
    assert schedule.is_overdue("a")
    assert schedule.next_at() is None
    assert schedule.turn(START + 500) == ([], [])
    schedule.answered("a", START + 500)
    assert not schedule.is_overdue("a")
    assert START + 501 <= due(schedule) <= START + 502


def test_a_sleeping_device_is_looked_at_seldom() -> None:
    """Rule: while it sleeps it is polled gently, and at every tick again when it is awake."""
    schedule = made()
    schedule.add("a", START)
    schedule.turn(START)
    schedule.answered("a", START, sleeping=True)
    assert due(schedule) == START + SLEEPING_CADENCE_SECONDS
    (tick,) = schedule.turn(due(schedule)).ask
    assert tick.dear  # what was not read while it slept is still due
    schedule.answered("a", START + SLEEPING_CADENCE_SECONDS)
    assert due(schedule) == START + SLEEPING_CADENCE_SECONDS + 1


@pytest.mark.parametrize(("cadence", "slow"), [(1, 10), (0.1, 0.3), (3, 10), (5, 1)])
def test_dear_readings_are_due_at_the_slow_cadence(cadence: float, slow: float) -> None:
    """Rule: the first sample has them, then they are due at the tick nearest to each slow tick."""
    schedule = made(cadence_seconds=cadence, slow_cadence_seconds=slow)
    for name in ("a", "b", "c"):
        schedule.add(name, START)
    dear: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    while (now := due(schedule)) < START + 200:
        for tick in schedule.turn(now).ask:
            if tick.dear:
                dear[tick.device_id].append(now)
            schedule.answered(tick.device_id, now)
    for times in dear.values():
        assert times[0] == START
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert max(gaps) <= max(slow, cadence) + cadence + 1e-6
        assert len(times) == pytest.approx(200 / max(slow, cadence), abs=2)


def test_dear_readings_fall_on_different_ticks() -> None:
    """Rule: after the first, the dear readings of ten devices are not due at one moment."""
    schedule = made()
    for place in range(10):
        schedule.add(f"gpu:{place}", START)
    counts: dict[float, int] = {}
    while (now := due(schedule)) < START + 50:
        for tick in schedule.turn(now).ask:
            counts[now] = counts.get(now, 0) + tick.dear
            schedule.answered(tick.device_id, now)
    del counts[START]
    assert max(counts.values()) <= 2


def test_dear_readings_that_failed_stay_due() -> None:
    """Rule: a failure does not use up the slow tick."""
    schedule = made()
    schedule.add("a", START)
    schedule.turn(START)
    schedule.answered("a", START, failed=True)
    (tick,) = schedule.turn(due(schedule)).ask
    assert tick.dear


def test_pausing_asks_nobody_and_resuming_asks_once() -> None:
    """Rule: a pause of an hour is followed by one call a device, then by the ticks as before."""
    schedule = made()
    schedule.add("a", START)
    schedule.turn(START)
    schedule.pause()
    assert schedule.turn(START + 2).overdue == ["a"]  # deadlines go on
    schedule.answered("a", START + 2.5)
    assert ask(schedule, START + 3600) == []
    assert schedule.next_at() is None
    schedule.resume(START + 3600.25)
    assert ask(schedule, START + 3600.25) == ["a"]
    schedule.answered("a", START + 3600.25)
    assert due(schedule) == START + 3601


def test_what_is_removed_is_not_asked() -> None:
    """Rule: a removed device is not due, nor is its call overdue, and its answer is ignored."""
    schedule = made()
    for name in ("a", "b"):
        schedule.add(name, START)
    assert ask(schedule, START) == ["a", "b"]
    schedule.remove("a")
    schedule.remove("never heard of")
    assert schedule.turn(START + 2).overdue == ["b"]
    schedule.answered("a", START + 3)
    assert not schedule.is_overdue("a")
    assert schedule.next_at() is None


def test_its_memory_is_bounded() -> None:
    """Rule: in an hour of 200 devices the agenda holds no more than calls within a deadline."""
    schedule = made()
    for place in range(200):
        schedule.add(f"gpu:{place}", START)
    most = 0
    while (now := due(schedule)) < START + 600:
        for tick in schedule.turn(now).ask:
            schedule.answered(tick.device_id, now)
        most = max(most, len(vars(schedule)["_agenda"]))
    assert most <= 200 * 4


@pytest.mark.parametrize("field", ["cadence_seconds", "slow_cadence_seconds", "deadline_seconds"])
@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "1"])
def test_impossible_times_are_refused(field: str, seconds: float) -> None:
    """Rule: a time that is no positive number of seconds is refused by its name."""
    with pytest.raises(InvalidValue, match=field):
        made(**{field: seconds})


def test_a_cadence_of_its_own() -> None:
    """Rule: a device may have another cadence than the rest, but none too short."""
    schedule = made(cadence_seconds=1)
    schedule.add("slow", START, cadence_seconds=7)
    schedule.turn(START)
    schedule.answered("slow", START)
    assert due(schedule) == START + 7
    with pytest.raises(InvalidValue, match="cadence_seconds"):
        schedule.add("fast", START, cadence_seconds=SHORTEST_CADENCE_SECONDS / 2)
