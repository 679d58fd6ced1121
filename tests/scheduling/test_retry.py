"""What becomes of an attempt that failed: bounded, told in words, and never for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.retry import RetryPolicy, Room, decide, retry_names
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.job import Attempt, Cause, Ending

GIB = 2**30
ROOMS = (Room("cuda:0", 8 * GIB), Room("cuda:1", 24 * GIB), Room("cpu:0", 64 * GIB, 4, False))
CARDS = ROOMS[:2]


def tried(cause, device="cuda:0", memory=None, names=()):
    return Attempt(
        device_id=device,
        slot=0,
        ending=Ending.FAILED,
        started_at=1.0,
        ended_at=2.0,
        cause=cause,
        memory_bytes=memory,
        names=names,
    )


def test_more_memory_each_time_until_the_largest_device_is_full():
    """2 GiB, 4, 8, and so on; the last step takes what there is, and then there is no more."""
    policy = RetryPolicy(max_growths=10)
    attempts, sizes = [], []
    size = 2 * GIB
    while True:
        attempts.append(tried(Cause.OUT_OF_DEVICE_MEMORY, memory=size))
        verdict = decide(attempts, policy, CARDS)
        if not verdict.again:
            break
        size = verdict.memory_bytes
        sizes.append(size // GIB)
    assert sizes == [4, 8, 16, 24]
    assert "24.0 GiB" in verdict.reason
    assert "no device that it may use holds more" in verdict.reason


def test_growing_is_bounded_and_told():
    policy = RetryPolicy(max_growths=1)
    one = tried(Cause.OUT_OF_DEVICE_MEMORY, memory=GIB)
    first = decide([one], policy, CARDS)
    assert (first.again, first.memory_bytes) == (True, 2 * GIB)
    assert first.reason == "it had 1.0 GiB and gets 2.0 GiB"
    second = decide([one, tried(Cause.OUT_OF_DEVICE_MEMORY, memory=2 * GIB)], policy, CARDS)
    assert (second.again, second.reason) == (False, "it ran out of memory 2 times")


def test_without_growing_it_is_a_failure_like_any_other():
    one = tried(Cause.OUT_OF_DEVICE_MEMORY, memory=GIB)
    assert not decide([one], RetryPolicy(grow=False), CARDS).again
    asked = decide([one], RetryPolicy(grow=False, retries=1), CARDS)
    assert (asked.again, asked.memory_bytes) == (True, None)


def test_what_was_not_declared_is_what_its_device_could_give():
    one = tried(Cause.OUT_OF_DEVICE_MEMORY)
    assert decide([one], RetryPolicy(), CARDS).memory_bytes == 16 * GIB
    shared = (Room("cuda:0", 8 * GIB, slots=4),)
    assert decide([one], RetryPolicy(), shared).memory_bytes == 4 * GIB
    alone = decide([one], RetryPolicy(), (Room("cuda:0", 8 * GIB),))
    assert not alone.again
    unknown = decide([one], RetryPolicy(), (Room("cuda:0"),))
    assert (unknown.again, unknown.reason) == (False, "how much memory it had is not known")


def test_the_machines_memory_is_what_the_host_leases_and_no_card_does():
    """On the host a larger lease helps; beside a card's own memory only another try may."""
    on_host = tried(Cause.OUT_OF_HOST_MEMORY, "cpu:0", GIB)
    assert decide([on_host], RetryPolicy(), ROOMS).memory_bytes == 2 * GIB
    on_card = tried(Cause.OUT_OF_HOST_MEMORY, memory=GIB)
    for count, again in ((1, True), (2, True), (3, False)):
        verdict = decide([on_card] * count, RetryPolicy(), ROOMS)
        assert (verdict.again, verdict.memory_bytes) == (again, None)


def test_whoever_took_the_memory_of_a_shared_process_goes_alone_next():
    one = tried(Cause.OUT_OF_HOST_MEMORY, "cpu:0", GIB)
    verdict = decide([one], RetryPolicy(), ROOMS, alone=False)
    assert (verdict.again, verdict.memory_bytes) == (True, None)


def test_a_lost_device_is_cordoned_and_shunned_for_good():
    lost = tried(Cause.DEVICE_LOST)
    verdict = decide([lost], RetryPolicy(), CARDS)
    assert (verdict.again, verdict.cordon) == (True, True)
    assert verdict.without_devices == ("cuda:0",)
    later = decide([lost, tried(Cause.KILLED, "cuda:1")], RetryPolicy(), CARDS)
    assert (later.again, later.without_devices) == (True, ("cuda:0",))
    both = decide([lost, tried(Cause.DEVICE_LOST, "cuda:1")], RetryPolicy(), CARDS)
    assert (both.again, both.cordon) == (False, True)
    assert both.reason == "there is no other device that it may use"


def test_what_had_grown_stays_grown_after_a_death():
    attempts = [
        tried(Cause.OUT_OF_DEVICE_MEMORY, memory=GIB),
        tried(Cause.KILLED, memory=2 * GIB),
    ]
    assert decide(attempts, RetryPolicy(), CARDS).memory_bytes == 2 * GIB


@pytest.mark.parametrize("cause", [Cause.EXCEPTION, Cause.EXIT_STATUS, Cause.TIMEOUT])
def test_a_failure_of_its_own_is_not_tried_again_unless_asked(cause):
    assert not decide([tried(cause)], RetryPolicy(), ()).again
    policy = RetryPolicy(retries=2)
    assert [decide([tried(cause)] * n, policy, ()).again for n in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize(
    ("retry_on", "again"),
    [
        ((ConnectionError,), True),
        ((OSError,), True),
        ((ValueError,), False),
        ((Cause.EXCEPTION,), True),
        (("timeout",), False),
        ((75,), False),
    ],
)
def test_only_after_what_was_named(retry_on, again):
    names = ("builtins.ConnectionError", "builtins.OSError", "builtins.Exception")
    policy = RetryPolicy(retries=1, retry_on=retry_names(retry_on))
    assert decide([tried(Cause.EXCEPTION, names=names)], policy, ()).again is again


def test_an_exit_status_can_be_named():
    policy = RetryPolicy(retries=1, retry_on=retry_names([75]))
    assert decide([tried(Cause.EXIT_STATUS, names=("75",))], policy, ()).again
    assert not decide([tried(Cause.EXIT_STATUS, names=("1",))], policy, ()).again


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0},
        {"retries": -1},
        {"growth_factor": 1.0},
        {"growth_factor": float("nan")},
        {"max_growths": -1},
        {"retry_on": ("timeout",)},
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name(values):
    with pytest.raises(InvalidValue, match=next(iter(values))):
        RetryPolicy(**values)


def test_retry_on_takes_classes_causes_and_statuses_only():
    for wrong in (3.5, True, "", object, None):
        with pytest.raises(InvalidValue, match="retry_on"):
            retry_names([wrong])


policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 4),
    retries=st.integers(0, 3),
    grow=st.booleans(),
    growth_factor=st.floats(1.1, 4),
    max_growths=st.integers(0, 4),
)
failures = st.sampled_from(list(Cause))


@given(policy=policies, data=st.data())
def test_every_item_ends_after_a_bounded_number_of_tries(policy, data):
    """Whatever happens to it: only what it is not to blame for at all is not counted."""
    attempts: list[Attempt] = []
    device, memory = "cuda:0", data.draw(st.none() | st.integers(1, 30 * GIB))
    counted = 0
    while True:
        cause = data.draw(failures)
        attempts.append(tried(cause, device, memory))
        counted += cause is not Cause.COLLATERAL
        verdict = decide(attempts, policy, ROOMS)
        if not verdict.again:
            break
        allowed = [room for room in ROOMS if room.device_id not in verdict.without_devices]
        assert allowed, "it may go somewhere"
        if verdict.memory_bytes is not None:
            largest = max(room.memory_bytes for room in allowed)
            assert verdict.memory_bytes <= max(30 * GIB, largest)
            memory = verdict.memory_bytes
        device = data.draw(st.sampled_from(allowed)).device_id
        if len(attempts) > 60:
            break
    bound = 3 * policy.max_attempts + policy.retries + policy.max_growths + 1
    assert counted <= bound


@given(policy=policies, cause=failures, memory=st.none() | st.integers(1, 30 * GIB))
def test_the_same_history_has_the_same_verdict(policy, cause, memory):
    attempts = [tried(cause, memory=memory)]
    assert decide(attempts, policy, ROOMS) == decide(attempts, policy, ROOMS)
    assert not decide([tried(Cause.CANCELLED)], policy, ROOMS).again


@given(policy=policies, memory=st.integers(1, 24 * GIB - 1), factor=st.floats(1.01, 8))
def test_a_growth_is_a_growth_and_fits_somewhere(policy, memory, factor):
    verdict = decide(
        [tried(Cause.OUT_OF_DEVICE_MEMORY, memory=memory)],
        RetryPolicy(growth_factor=factor),
        CARDS,
    )
    assert verdict.again
    assert memory < verdict.memory_bytes <= 24 * GIB
