"""The filters: each rule refuses for its own reason, and says whether a wait can help."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from exo.gpu.scheduling.filters import first_refusal, names_of, unknown_names
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
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
        (one,) = unknown_names(snapshot(self.card), ("cuda:00",))
        assert one.device_id == "cuda:00"
        assert "did you mean 'cuda:0'?" in one.reason
        assert "here: cuda:0" in one.reason

    def test_with_no_devices_at_all_it_says_none(self):
        (one,) = unknown_names(snapshot(), ("cuda:0",))
        assert "here: none" in one.reason

    def test_no_names_no_complaint(self):
        assert unknown_names(snapshot(self.card), ()) == ()


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


def part(share):
    return msgspec.structs.replace(lease(), share=share)


class TestShares:
    def test_shares_are_given_until_the_device_is_full(self):
        one = state("cuda:0", leases=(part(0.5), part(0.3)))
        assert rule(one, Request(share=0.2)) is None
        found = refusal(one, Request(share=0.25))
        assert (found.rule, found.permanent) == ("share", False)
        assert found.reason == "has a share of 0.2 free of the 0.25 asked for (0.8 leased)"

    def test_ten_tenths_are_a_whole(self):
        assert rule(state("cuda:0", leases=(part(0.1),) * 9), Request(share=0.1)) is None
        assert rule(state("cuda:0", leases=(part(0.1),) * 10), Request(share=0.1)) is not None

    def test_a_slot_is_an_equal_part(self):
        half = state("cuda:0", slots=2, leases=(lease(),))
        assert rule(half, Request(share=0.5)) is None
        assert rule(half, Request(share=0.6)) == ("share", False)
        shared = state("cuda:0", slots=2, leases=(part(0.6),))
        assert rule(shared) == ("slots", False)
        assert rule(state("cuda:0", slots=2, leases=(part(0.5),))) is None

    def test_declared_memory_stands_beside_shares(self):
        assert rule(state("cuda:0", leases=(part(1.0),)), Request(memory_bytes=GIB)) is None

    def test_a_setting_bounds_them(self):
        capped = DeviceSettings(max_share=0.5, slots=2)
        one = state("cuda:0", settings=capped, leases=(part(0.3),))
        assert rule(one, Request(share=0.2)) is None
        assert rule(one, Request(share=0.3)) == ("share", False)
        assert rule(state("cuda:0", settings=capped, leases=(lease(), lease()))) == ("slots", False)
        assert rule(state("cuda:0", settings=capped, leases=(lease(),))) is None


class TestReadings:
    def test_too_little_compute_free_is_not_now(self):
        one = refusal(state("cuda:0", percent=60), Request(min_idle_percent=50))
        assert (one.rule, one.permanent) == ("idle", False)
        assert one.reason == "is 40 % idle, 50 % are asked for"
        assert rule(state("cuda:0", percent=50), Request(min_idle_percent=50)) is None

    def test_too_hot_is_not_now(self):
        one = refusal(state("cuda:0", celsius=81), Request(max_temperature_celsius=80))
        assert (one.rule, one.permanent) == ("temperature", False)
        assert one.reason == "is at 81 C, at most 80 C is asked for"
        assert rule(state("cuda:0", celsius=80), Request(max_temperature_celsius=80)) is None


class TestHosts:
    def beside(self, request, **facts):
        card = state("cuda:0", leases=facts.pop("held", ()))
        return refusal(card, request, state("cpu:0", 64, 60, slots=4, **facts))

    def test_cores_and_memory_must_be_free_beside_the_device(self):
        assert self.beside(Request(host_cpus=4, host_memory_bytes=4 * GIB)) is None
        found = self.beside(Request(host_memory_bytes=5 * GIB))
        assert (found.rule, found.permanent) == ("host", False)
        assert "4.0 GiB of memory free of the 5.0 GiB asked for" in found.reason
        busy = self.beside(Request(host_cpus=4), leases=(lease("cpu:0"),))
        assert "3 cores free of the 4 asked for" in busy.reason

    def test_what_other_leases_hold_beside_their_devices_counts(self):
        held = lease(held=1, before=0)
        held = msgspec.structs.replace(held, host_cpus=2, host_memory_bytes=3 * GIB)
        host = {"leases": (), "held": (held,)}
        assert "2 cores free" in self.beside(Request(host_cpus=3, memory_bytes=1), **host).reason
        asked = Request(host_memory_bytes=2 * GIB, memory_bytes=1)
        free = self.beside(asked, **host)
        assert free is None  # 60 of 64 GiB are in use already: what was leased is part of it

    def test_a_device_of_the_hosts_pool_needs_both_at_once(self):
        host = state("cpu:0", 64, 60)
        request = Request(memory_bytes=3 * GIB, host_memory_bytes=2 * GIB)
        assert refusal(host, request).rule == "memory"


def test_never_is_not_hidden_by_not_now():
    """A stale, busy device that is also too small is refused for ever."""
    one = state("cuda:0", age=99, health=Health.LOST, leases=(lease(exclusive=True),))
    assert rule(one, Request(memory_bytes=99 * GIB)) == ("memory", True)


def test_a_policy_may_bring_its_own_rules():
    assert first_refusal(state("cuda:0", age=99), snapshot(), Request(), ()) is None
