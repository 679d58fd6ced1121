"""The ledger: memory that leases hold counts before anybody has taken it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.ledger import free_memory, total_memory, used_before
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.settings import DeviceSettings
from tests.scheduling.states import GIB, lease, snapshot, state

SOFTWARE = DeviceClass.SOFTWARE


def free(*states, of=0):
    return free_memory(states[of], snapshot(*states))


def test_without_leases_free_is_total_less_used():
    memory = free(state("cuda:0", 24, 20))
    assert (memory.free_bytes, memory.total_bytes) == (4 * GIB, 24 * GIB)
    assert not memory.assumed


def test_what_the_driver_reserves_is_neither_used_nor_free():
    one = state("cuda:0", 24, 4, reserved=1)
    assert free(one).free_bytes == 19 * GIB
    assert total_memory(one, snapshot(one)) == 23 * GIB
    assert "1.0 GiB reserved" in free(one).note


def test_a_lease_counts_before_its_process_has_taken_the_memory():
    memory = free(state("cuda:0", 24, 2, leases=(lease(held=8, before=2),)))
    assert memory.free_bytes == 14 * GIB


def test_a_lease_counts_once_when_its_process_has_taken_the_memory():
    memory = free(state("cuda:0", 24, 10, leases=(lease(held=8, before=2),)))
    assert memory.free_bytes == 14 * GIB


def test_a_process_that_takes_more_than_it_declared_counts_as_measured():
    memory = free(state("cuda:0", 24, 20, leases=(lease(held=8, before=2),)))
    assert memory.free_bytes == 4 * GIB


def test_foreign_use_is_never_above_the_use_now():
    memory = free(state("cuda:0", 24, 1, leases=(lease(held=8, before=10),)))
    assert memory.free_bytes == 15 * GIB


def test_a_later_grant_knows_more_than_the_oldest():
    leases = (lease(before=1), lease(held=4, before=6))
    assert free(state("cuda:0", 24, 6, leases=leases)).free_bytes == 14 * GIB


def test_without_a_use_reading_leases_alone_count_and_the_answer_is_assumed():
    memory = free(state("metal:0", 24, None, leases=(lease("metal:0", 8),)))
    assert memory.free_bytes == 16 * GIB
    assert memory.assumed
    assert "use unknown" in memory.note


def test_without_a_sample_the_static_total_counts():
    memory = free(state("cuda:0", 24, sampled=False))
    assert memory.free_bytes == 24 * GIB
    assert memory.assumed


def test_an_unknown_total_is_unknown_with_its_reason():
    memory = free(state("cuda:0", None, None))
    assert memory.free_bytes is None
    assert memory.total_bytes is None
    assert "no memory total" in memory.note


def test_a_lease_on_one_member_of_a_pool_takes_from_all():
    holder = lease("vulkan:0", 8, before=10, pool=HOST_POOL)
    driver = state("vulkan:0", 24, None, device_class=SOFTWARE, leases=(holder,))
    host = state("cpu:0", 24, 10)
    for member in (0, 1):
        assert free(driver, host, of=member).free_bytes == 6 * GIB


def test_the_device_itself_may_be_tighter_than_its_pool():
    driver = state("vulkan:0", 2, None, device_class=SOFTWARE)
    memory = free(driver, state("cpu:0", 24, 10))
    assert (memory.free_bytes, memory.total_bytes) == (2 * GIB, 2 * GIB)


def test_a_shared_device_without_a_total_of_its_own_may_use_the_pool():
    integrated = state("cuda:0", None, None, memory_pool=HOST_POOL)
    memory = free(integrated, state("cpu:0", 24, 10))
    assert (memory.free_bytes, memory.total_bytes) == (14 * GIB, 24 * GIB)
    assert memory.assumed


def test_a_pool_without_its_host_is_as_large_as_its_largest_member():
    small = state("vulkan:0", 4, None, device_class=SOFTWARE)
    large = state(
        "vulkan:1", 16, None, device_class=SOFTWARE, leases=(lease("vulkan:1", 15, pool=HOST_POOL),)
    )
    assert free(small, large).free_bytes == 1 * GIB


def test_pools_of_two_nodes_are_two_pools():
    here = state("cpu:0", 24, 10)
    there = state("rig2/cpu:0", 64, 1, node="rig2", leases=(lease("rig2/cpu:0", 60, pool="host"),))
    assert free(here, there).free_bytes == 14 * GIB


def test_a_named_pool_of_one_device_is_its_own():
    assert free(state("cuda:0", 24, 4, memory_pool="card")).free_bytes == 20 * GIB


def test_total_memory_is_the_smaller_of_device_and_pool():
    driver = state("vulkan:0", 64, None, device_class=SOFTWARE)
    host = state("cpu:0", 24, 10)
    assert total_memory(driver, snapshot(driver, host)) == 24 * GIB
    assert total_memory(state("x:0", None, None), snapshot(state("x:0", None, None))) is None


class TestKeptForOthers:
    def card(self, used, *leases, **facts):
        reserve = facts.pop("reserve", None)
        settings = DeviceSettings(reserve_bytes=reserve and reserve * GIB)
        return state("cuda:0", 24, used, settings=settings, leases=leases, **facts)

    def test_what_a_person_set_aside_holds_what_others_use_too(self):
        assert free(self.card(1, reserve=4)).free_bytes == 20 * GIB
        assert free(self.card(6, reserve=4)).free_bytes == 18 * GIB
        assert "4.0 GiB kept for others" in free(self.card(1, reserve=4)).note

    def test_leases_count_beside_it(self):
        one = self.card(1, lease(held=8, before=1), reserve=4)
        assert free(one).free_bytes == 12 * GIB
        assert free(self.card(9, lease(held=8, before=1), reserve=4)).free_bytes == 12 * GIB

    def test_it_is_never_to_be_had(self):
        one = self.card(0, reserve=4)
        assert total_memory(one, snapshot(one)) == 20 * GIB

    def test_a_display_card_keeps_its_desktops_use_and_half_a_gib(self):
        one = self.card(2, drives_display=True)
        assert free(one).free_bytes == 21.5 * GIB
        assert total_memory(one, snapshot(one)) == 23.5 * GIB
        leased = self.card(2, lease(held=8, before=2), drives_display=True)
        assert free(leased).free_bytes == 13.5 * GIB
        assert free(self.card(2, drives_display=True, reserve=0)).free_bytes == 22 * GIB

    def test_memory_of_the_machine_held_beside_a_device_is_taken_from_its_pool(self):
        held = msgspec.structs.replace(lease(held=1), host_memory_bytes=6 * GIB)
        card = state("cuda:0", leases=(held,))
        assert free(state("cpu:0", 24, 0), card).free_bytes == 18 * GIB


class TestUsedBefore:
    def test_it_is_the_use_by_nobodys_lease(self):
        one = state("cuda:0", 24, 10, leases=(lease(held=8, before=2),))
        assert used_before(one, snapshot(one)) == 2 * GIB

    def test_it_is_inherited_while_a_lease_has_not_taken_its_memory(self):
        one = state("cuda:0", 24, 2, leases=(lease(held=8, before=2),))
        assert used_before(one, snapshot(one)) == 2 * GIB

    def test_it_is_unknown_where_use_is_unknown(self):
        one = state("cuda:0", 24, None)
        assert used_before(one, snapshot(one)) is None

    def test_on_a_shared_pool_it_is_that_of_the_pool(self):
        driver = state("vulkan:0", 24, None, device_class=SOFTWARE)
        assert used_before(driver, snapshot(driver, state("cpu:0", 24, 10))) == 10 * GIB

    def test_a_stream_of_leases_does_not_wait_for_the_whole_batch(self):
        """Four of 6 GiB fill 24; when the first ends, the next fits at once."""
        leases = ()
        for taken in range(4):
            before = state("cuda:0", 24, 6 * taken, leases=leases)
            assert free(before).free_bytes >= 6 * GIB
            baseline = used_before(before, snapshot(before))
            leases = (*leases, lease(held=6, before=baseline / GIB))
        assert free(state("cuda:0", 24, 24, leases=leases)).free_bytes == 0
        assert free(state("cuda:0", 24, 18, leases=leases[1:])).free_bytes == 6 * GIB


sizes = st.integers(0, 64)


@given(
    total=sizes,
    used=st.none() | sizes,
    grants=st.lists(st.tuples(st.none() | st.integers(1, 64), st.none() | sizes)),
    host_used=st.none() | sizes,
    shared=st.booleans(),
)
def test_free_and_leased_never_exceed_the_memory(total, used, grants, host_used, shared):
    """What is free, beside everything leased that fits, stays within device and pool."""
    used = None if used is None else min(used, total)
    pool = HOST_POOL if shared else "own"
    leases = tuple(lease("cuda:0", held, before=before, pool=pool) for held, before in grants)
    device = state("cuda:0", total, used, leases=leases, memory_pool=pool)
    host = state("cpu:0", 64, host_used)
    memory = free(device, host)
    held = sum(held or 0 for held, _ in grants) * GIB
    assert 0 <= memory.free_bytes <= memory.total_bytes
    if memory.free_bytes:
        assert memory.free_bytes + held <= total * GIB
        assert memory.free_bytes + (used or 0) * GIB <= total * GIB


@pytest.mark.parametrize("extra", [1, 5])
def test_a_grant_never_makes_more_free(extra):
    one = state("cuda:0", 24, 10, leases=(lease(held=8, before=2),))
    more = state("cuda:0", 24, 10, leases=(lease(held=8, before=2), lease(held=extra, before=2)))
    assert free(more).free_bytes == free(one).free_bytes - extra * GIB
