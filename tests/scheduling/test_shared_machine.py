"""What devices share, the memory behind them and the machine's cores, is never given out twice."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.filters import takes_slot
from exo.gpu.scheduling.job_queue import reserve, take_turn
from exo.gpu.scheduling.selector import leases_of, refusal_message, select
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.lease import Waiter
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import Snapshot
from tests.scheduling.states import GIB, state

CORES = 8
MACHINE_GIB = 16


def host(**more):
    facts = {"device_class": DeviceClass.HOST, "memory_pool": HOST_POOL, "slots": CORES}
    return state("cpu:0", MACHINE_GIB, 0, hardware_id="cpu:0", **(facts | more))


def software(index, **more):
    facts = {"device_class": DeviceClass.SOFTWARE, "memory_pool": HOST_POOL}
    name = f"vulkan:{index}"
    return state(name, MACHINE_GIB, 0, hardware_id=name, **(facts | more))


def card(index=0, **more):
    return state(f"cuda:{index}", 24, 0, hardware_id=f"cuda:{index}", **more)


def taking(states, request):
    """The states once the request has what it is given."""
    decision = select(Snapshot(tuple(states)), request)
    number = sum(len(one.leases) for one in states)
    taken = {
        one.device_id: msgspec.structs.replace(one, lease_id=f"{number}:{one.device_id}")
        for one in leases_of(Snapshot(tuple(states)), decision.chosen, request)
    }
    return [
        msgspec.structs.replace(one, leases=(*one.leases, taken[one.device.device_id]))
        if one.device.device_id in taken
        else one
        for one in states
    ]


def answers(states, **asked):
    """What the plain definition says; that the table says the same is asserted."""
    decision = select(Snapshot(tuple(states)), Request(**asked))
    assert FastSelector(states).choose(Request(**asked)).chosen == decision.chosen
    return decision


class TestSeveralOnOnePool:
    def test_two_that_fit_one_by_one_and_not_together_are_never_a_gang(self):
        """Rule: 10 GiB fit either of two that share 16, and 2 x 10 fit nowhere: no wait helps."""
        states = (host(), software(0), software(1))
        decision = answers(states, count=2, memory_bytes=10 * GIB)
        assert decision.chosen == ()
        assert decision.never
        assert len(answers(states, count=2, memory_bytes=8 * GIB).chosen) == 2

    def test_what_fits_once_others_have_gone_is_worth_waiting_for(self):
        states = (host(), software(0), software(1))
        busy = taking(states, Request(devices=("cpu:0",), memory_bytes=6 * GIB))
        decision = answers(busy, count=2, memory_bytes=6 * GIB)
        assert (decision.chosen, decision.never) == ((), False)
        assert "enough for 1 x 6.0 GiB now" in refusal_message(decision)
        full = taking(states, Request(devices=("cpu:0",), memory_bytes=12 * GIB))
        assert not answers(full, count=2, memory_bytes=8 * GIB).never
        assert answers(full, count=2, memory_bytes=9 * GIB).never

    def test_the_memory_of_the_machine_counts_once_beside_them(self):
        states = (host(), software(0), software(1))
        asked = {"count": 2, "memory_bytes": 6 * GIB}
        assert len(answers(states, host_memory_bytes=4 * GIB, **asked).chosen) == 2
        assert answers(states, host_memory_bytes=5 * GIB, **asked).never

    def test_who_cannot_join_the_gang_takes_no_room_from_it(self):
        """Rule: an integrated GPU of another runtime has the first rank, and is none of the two."""
        odd = state("rocm:0", MACHINE_GIB, 0, hardware_id="rocm:0", memory_pool=HOST_POOL)
        states = (host(), odd, software(0), software(1))
        decision = answers(states, count=2, memory_bytes=8 * GIB)
        assert decision.chosen == ("vulkan:0", "vulkan:1")


class TestCores:
    def test_cores_leased_beside_a_card_are_no_slots_of_the_processor(self):
        busy = taking((host(), card()), Request(runtime="cuda", host_cpus=CORES - 1))
        assert answers(busy, devices=("cpu:0",)).chosen == ("cpu:0",)
        full = taking(busy, Request(devices=("cpu:0",)))
        decision = answers(full, devices=("cpu:0",))
        assert decision.chosen == ()
        assert "has 8 of 8 slots taken" in refusal_message(decision)

    def test_a_processor_with_cores_leased_is_not_had_alone_nor_in_large_shares(self):
        busy = taking((host(), card()), Request(runtime="cuda", host_cpus=4))
        decision = answers(busy, devices=("cpu:0",), exclusive=True)
        assert "4 of its cores are leased" in refusal_message(decision)
        assert answers(busy, devices=("cpu:0",), share=0.5).chosen
        assert not answers(busy, devices=("cpu:0",), share=0.6).chosen

    @pytest.mark.parametrize(
        ("held", "left"), [({"exclusive": True}, 0), ({"share": 0.75}, 2), ({}, CORES - 1)]
    )
    def test_what_is_leased_of_the_processor_leaves_less_beside_a_card(self, held, left):
        """Rule: a whole processor, a share and a slot of it all count as cores."""
        busy = taking((host(), card()), Request(devices=("cpu:0",), **held))
        assert not answers(busy, runtime="cuda", host_cpus=left + 1).chosen
        if left:
            assert answers(busy, runtime="cuda", host_cpus=left).chosen

    def test_a_processor_of_which_nothing_may_be_leased_has_no_cores_to_give(self):
        states = (host(settings=DeviceSettings(max_share=0)), card())
        assert not answers(states, runtime="cuda", host_cpus=1).chosen

    def test_a_slot_of_the_processor_is_one_of_the_cores_asked_for(self):
        """Rule: all cores can be had with the processor itself, and nothing is left then."""
        full = taking((host(), card()), Request(devices=("cpu:0",), host_cpus=CORES))
        assert full[0].leases
        assert not answers(full, devices=("cpu:0",)).chosen
        both = taking((host(), card()), Request(all_devices=True, count=2, host_cpus=CORES))
        assert both[0].leases[0].host_cpus == CORES
        assert both[1].leases[0].host_cpus is None

    def test_who_works_under_the_lease_uses_its_cores(self):
        busy = taking((host(), card()), Request(runtime="cuda", host_cpus=CORES))
        mine = Snapshot(tuple(busy), umbrella=(busy[1].leases[0].lease_id,))
        assert select(mine, Request(devices=("cpu:0",))).chosen == ("cpu:0",)


class TestUnseen:
    """Leases on devices that an inherited restriction hides."""

    def test_they_count_in_the_pool_and_on_the_machine(self):
        states = taking(
            (host(), software(0), card()),
            Request(devices=("vulkan:0",), memory_bytes=6 * GIB, host_memory_bytes=6 * GIB),
        )
        states = taking(states, Request(runtime="cuda", host_cpus=6))
        hidden = states[1].leases + states[2].leases
        seen = Snapshot((states[0], card(1)), unseen=hidden)
        assert not select(seen, Request(devices=("cpu:0",), memory_bytes=5 * GIB)).chosen
        assert select(seen, Request(devices=("cpu:0",), memory_bytes=4 * GIB)).chosen
        assert not select(seen, Request(devices=("cuda:1",), host_cpus=3)).chosen
        assert select(seen, Request(devices=("cuda:1",), host_cpus=2)).chosen
        assert not select(seen, Request(devices=("cuda:1",), host_memory_bytes=5 * GIB)).chosen


def waits(name, at=1.0, *, reserved=(), since=None, **fields):
    return Waiter(
        waiter_id=name,
        request=Request(**fields),
        arrived_seconds=at,
        reserved=reserved,
        reserved_seconds=since,
    )


def turn(head, passer, states):
    return take_turn([head], passer, Snapshot(tuple(states)), 10.0)


class TestTheLine:
    """What is kept for the first in the line is kept in the pool and on the machine, too."""

    def test_nobody_passes_into_the_pool_behind_a_device_that_is_kept(self):
        """Rule: 12 of 16 GiB are kept, whichever of the devices that share them is asked for."""
        states = taking(
            (host(), software(0)), Request(devices=("vulkan:0",), memory_bytes=10 * GIB)
        )
        head = waits("head", devices=("vulkan:0",), memory_bytes=12 * GIB)
        fits = turn(head, waits("b", 2.0, devices=("cpu:0",), memory_bytes=4 * GIB), states)
        assert fits.decision.chosen == ("cpu:0",)
        delays = turn(head, waits("b", 2.0, devices=("cpu:0",), memory_bytes=5 * GIB), states)
        assert delays.decision.chosen == ()
        assert "cpu:0 shares what is kept for head" in refusal_message(delays.decision)

    def test_nobody_passes_onto_cores_that_are_kept(self):
        states = taking((host(), card(0), card(1)), Request(devices=("cuda:0",), host_cpus=6))
        head = waits("head", devices=("cuda:0",), host_cpus=7)
        one, two = (waits("b", 2.0, devices=("cuda:1",), host_cpus=count) for count in (1, 2))
        assert turn(head, one, states).decision.chosen == ("cuda:1",)
        assert turn(head, two, states).decision.chosen == ()

    def test_a_reservation_with_cores_does_not_wander(self):
        """Rule: the machine is looked at with the device, else each look would make it anew."""
        states = taking((host(), card(0)), Request(devices=("cuda:0",), host_cpus=6))
        head = waits("head", host_cpus=7, reserved=("cuda:0",), since=5.0)
        assert reserve(Snapshot(tuple(states)), head, 10.0) is head

    def test_memory_of_a_lease_is_back_in_its_pool_when_it_ends(self):
        """Rule: the use of a pool is read from the host; what is kept does not hang on that."""
        states = taking(
            (host(), software(0)), Request(devices=("vulkan:0",), memory_bytes=10 * GIB)
        )
        sample = msgspec.structs.replace(states[0].sample, memory_used_bytes=11 * GIB)
        states[0] = msgspec.structs.replace(states[0], sample=sample)
        head = waits("head", devices=("vulkan:0",), memory_bytes=12 * GIB)
        answer = turn(head, waits("b", 2.0, devices=("vulkan:0",), memory_bytes=4 * GIB), states)
        assert answer.head.reserved == ("vulkan:0",)
        assert answer.decision.chosen == ()


asked = st.fixed_dictionaries(
    {
        "memory_bytes": st.sampled_from([None, GIB, 4 * GIB, 10 * GIB]),
        "share": st.sampled_from([None, None, 0.3, 1.0]),
        "exclusive": st.sampled_from([False, False, False, True]),
        "host_cpus": st.sampled_from([None, 1, 3, 8]),
        "host_memory_bytes": st.sampled_from([None, 2 * GIB, 7 * GIB]),
        "count": st.integers(1, 3),
        "all_devices": st.booleans(),
    }
)


@settings(max_examples=120, deadline=None)
@given(st.lists(asked, max_size=14))
def test_whatever_is_given_the_machine_has_it(requests):
    """Rule: leases of all kinds together never hold more memory, cores or parts than there are."""
    states = [host(), software(0), software(1), card(0), card(1)]
    for fields in requests:
        states = taking(states, Request(**fields))
    leases = [one for each in states for one in each.leases]
    pooled = sum(one.memory_bytes or 0 for one in leases if one.memory_pool == HOST_POOL)
    assert pooled + sum(one.host_memory_bytes or 0 for one in leases) <= MACHINE_GIB * GIB
    whole = [one for one in states[0].leases if one.exclusive]
    beside = [one for one in leases if one.device_id != "cpu:0" and one.host_cpus]
    own = [
        max(one.host_cpus or 0, (one.share or 0) * CORES, takes_slot(one))
        for one in states[0].leases
    ]
    assert sum(own) + sum(one.host_cpus for one in beside) <= CORES + 1e-6
    assert not whole or (len(own) == 1 and not beside)
    for each in states:
        assert sum(one.share or 0 for one in each.leases) <= 1 + 1e-6
        assert len(each.leases) == 1 or not any(one.exclusive for one in each.leases)
        assert sum(one.memory_bytes or 0 for one in each.leases) <= 24 * GIB
