"""The filters: each rule refuses for its own reason, and says whether a wait can help."""

from __future__ import annotations

from typing import Any

import pytest

from exo.gpu.scheduling.filters import first_refusal, names_of, unknown_names
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health
from tests.scheduling.states import GIB, lease, snapshot, state


def refusal(one, request=None, *others):
    return first_refusal(one, snapshot(one, *others), request or Request())


def rule(one, request=None):
    found = refusal(one, request)
    return None if found is None else (found.rule, found.permanent)


def test_a_sound_device_passes_every_rule():
    assert refusal(state("cuda:0"), Request(memory_bytes=8 * GIB)) is None


class TestNames:
    card = state("cuda:0", hardware_id="GPU-1234", aliases=("vulkan:0",))

    @pytest.mark.parametrize("name", ["cuda:0", "GPU-1234", "vulkan:0"])
    def test_a_device_answers_to_its_id_hardware_id_and_aliases(self, name):
        assert rule(self.card, Request(devices=(name,))) is None
        assert name in names_of(self.card.device)

    def test_other_devices_are_refused_for_ever(self):
        one = refusal(state("cuda:1"), Request(devices=("cuda:0",)), self.card)
        assert (one.rule, one.permanent) == ("device", True)

    def test_one_unknown_name_refuses_all(self):
        request = Request(devices=("cuda:0", "cuda:9"))
        one = refusal(self.card, request)
        assert one.permanent
        assert "'cuda:9'" in one.reason

    def test_an_unknown_name_is_told_with_the_near_spelling_and_what_is_here(self):
        (one,) = unknown_names(snapshot(self.card), Request(devices=("cuda:00",)))
        assert one.device_id == "cuda:00"
        assert "did you mean 'cuda:0'?" in one.reason
        assert "here: cuda:0" in one.reason

    def test_with_no_devices_at_all_it_says_none(self):
        (one,) = unknown_names(snapshot(), Request(devices=("cuda:0",)))
        assert "here: none" in one.reason

    def test_no_names_no_complaint(self):
        assert unknown_names(snapshot(self.card), Request()) == ()


def test_another_class_is_refused_for_ever():
    assert rule(state("cuda:0"), Request(device_class=DeviceClass.SOFTWARE)) == ("class", True)
    assert rule(state("cuda:0"), Request(device_class=DeviceClass.HARDWARE)) is None


def test_another_runtime_is_refused_for_ever():
    assert rule(state("cuda:0"), Request(runtime="rocm")) == ("runtime", True)
    assert rule(state("rocm:0"), Request(runtime="rocm")) is None


class TestMemory:
    def test_more_than_there_is_is_never_and_tells_the_total(self):
        one = refusal(state("cuda:0"), Request(memory_bytes=25 * GIB))
        assert (one.rule, one.permanent, one.total_bytes) == ("memory", True, 24 * GIB)

    def test_an_unknown_total_holds_nothing_that_is_asked(self):
        found = refusal(state("x:0", None, None), Request(memory_bytes=1))
        assert (found.rule, found.permanent) == ("memory", True)
        assert "reports no memory total" in found.reason

    def test_more_than_is_free_is_not_now_and_tells_what_is_free(self):
        one = refusal(state("cuda:0", 24, 20), Request(memory_bytes=5 * GIB))
        assert (one.rule, one.permanent) == ("memory", False)
        assert (one.free_bytes, one.total_bytes) == (4 * GIB, 24 * GIB)
        assert "4.0 GiB free of the 5.0 GiB asked for" in one.reason

    def test_a_lease_not_yet_taken_up_counts(self):
        """D14: what was promised is deducted before telemetry shows it."""
        one = state("cuda:0", 24, 1, leases=(lease(held=20, before=1),))
        assert rule(one, Request(memory_bytes=4 * GIB)) == ("memory", False)
        assert rule(one, Request(memory_bytes=3 * GIB)) is None

    def test_asking_for_nothing_needs_no_total(self):
        assert rule(state("x:0", None, None), Request()) is None


class TestFreshness:
    def test_an_old_sample_is_not_now(self):
        """D10: age counts from receipt, whatever the sample's own timestamp (1.0 here)."""
        assert rule(state("cuda:0", age=30.0)) is None
        assert rule(state("cuda:0", age=30.1)) == ("stale", False)

    def test_a_device_never_sampled_is_eligible(self):
        """D13."""
        assert rule(state("cuda:0", sampled=False), Request(memory_bytes=8 * GIB)) is None


@pytest.mark.parametrize("health", [Health.FAILED, Health.LOST])
def test_what_failed_or_is_lost_is_not_now_and_says_why(health):
    one = refusal(state("cuda:0", health=health, why="fell off the bus"))
    assert (one.rule, one.permanent) == ("health", False)
    assert one.reason == f"is {health}: fell off the bus"
    assert refusal(state("cuda:0", health=health)).reason == f"is {health}"


@pytest.mark.parametrize("health", [Health.OK, Health.DEGRADED, Health.SLEEPING])
def test_what_can_still_work_is_eligible(health):
    assert rule(state("cuda:0", health=health)) is None


class TestExclusive:
    taken = (lease(held=1, exclusive=True, holder="train.py", pid=42),)

    @pytest.mark.parametrize(
        "request_", [Request(), Request(memory_bytes=1), Request(exclusive=True)]
    )
    def test_a_wholly_leased_device_is_taken_for_everybody(self, request_):
        one = refusal(state("cuda:0", leases=self.taken), request_)
        assert (one.rule, one.permanent) == ("exclusive", False)
        assert one.reason == "is wholly leased by train.py (process 42)"

    def test_a_lease_without_names_is_told_without_them(self):
        one = refusal(state("cuda:0", leases=(lease(exclusive=True),)))
        assert one.reason == "is wholly leased"

    def test_alone_means_no_other_lease(self):
        request = Request(exclusive=True, memory_bytes=GIB)
        shared = state("cuda:0", leases=(lease(held=1), lease(held=1)))
        assert rule(shared, request) == ("exclusive", False)
        assert rule(state("cuda:0"), request) is None


def cordon(**facts: Any) -> Cordon:
    return Cordon(
        hardware_id="GPU-1", device_id="cuda:0", why="fan rattles", by="ann", since=1.0, **facts
    )


class TestCordons:
    def test_a_cordoned_device_is_refused_for_now_with_who_and_why(self):
        one = refusal(state("cuda:0", cordon=cordon()))
        assert (one.rule, one.permanent) == ("cordon", False)
        assert one.reason == "is cordoned by ann: fan rattles"

    def test_a_draining_device_takes_nothing_new(self):
        one = refusal(state("cuda:0", cordon=cordon(draining=True)))
        assert one.reason == "is being drained by ann: fan rattles"

    def test_a_probe_may_ask_all_the_same(self):
        """Rule: who is to find out whether it is well gets it despite the cordon."""
        assert rule(state("cuda:0", cordon=cordon()), Request(despite_cordon=True)) is None


class TestSlots:
    def test_work_without_declared_memory_takes_a_slot(self):
        assert rule(state("cuda:0", leases=(lease(),))) == ("slots", False)
        assert rule(state("cpu:0", slots=2, leases=(lease("cpu:0"),))) is None

    def test_declared_memory_takes_no_slot(self):
        assert rule(state("cuda:0", leases=(lease(held=4, before=4),))) is None
        assert rule(state("cuda:0", leases=(lease(),)), Request(memory_bytes=GIB)) is None


def test_never_is_not_hidden_by_not_now():
    """A stale, busy device that is also too small is refused for ever."""
    one = state("cuda:0", age=99, health=Health.LOST, leases=(lease(exclusive=True),))
    assert rule(one, Request(memory_bytes=99 * GIB)) == ("memory", True)


def test_a_policy_may_bring_its_own_rules():
    assert first_refusal(state("cuda:0", age=99), snapshot(), Request(), ()) is None
