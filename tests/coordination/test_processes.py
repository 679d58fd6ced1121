"""Processes joined with leases: each of both is in the answer, and in no other place twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.coordination.processes import EVERYBODY, LEASES_ONLY, NOTHING_YET, join
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.process import ProcessList, RunningProcess
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

GIB = 2**30


def lease(lease_id, device_id="cuda:0", **more):
    facts = {"pid": 100, "user": "alice", "command": "exo-gpu run", "taken_at": 1000.0}
    return Lease(
        lease_id=lease_id,
        device_id=device_id,
        hardware_id=device_id,
        memory_pool=device_id,
        **facts | more,
    )


def state(device_id="cuda:0", *leases, device_class=DeviceClass.HARDWARE):
    device = GPUDevice(device_id, "Card", "Nobody", "fake", device_class=device_class)
    return DeviceState(device=device, leases=leases)


def seen(*processes, device_id="cuda:0", reason=""):
    return ProcessList(device_id=device_id, processes=processes, reason=reason)


def process(pid, **more):
    return RunningProcess(pid=pid, **{"memory_bytes": GIB, "user": "bob"} | more)


def test_a_process_whose_environment_names_the_lease_is_covered():
    """Rule: processes started under a lease carry its id, whatever became of their parents."""
    held = lease("a", memory_bytes=8 * GIB, holder="training")
    (user,) = join(Snapshot((state("cuda:0", held),)), [seen(process(7, lease_ids=("a",)))]).users
    assert (user.lease_id, user.foreign, user.listed) == ("a", False, True)
    assert (user.declared_bytes, user.memory_bytes, user.holder) == (8 * GIB, GIB, "training")
    assert (user.pid, user.user) == (7, "bob")


def test_a_descendant_of_the_holder_is_covered():
    """Rule: where the environment is hidden or says nothing, descent tells."""
    below = process(7, ancestry=((7, 1005.0), (50, 1004.0), (100, 990.0)))
    snapshot = Snapshot((state("cuda:0", lease("a")),))
    assert join(snapshot, [seen(below)]).users[0].lease_id == "a"


def test_a_holder_that_works_itself_is_covered():
    """Rule: a program that took a lease works under it."""
    own = process(100, ancestry=((100, 990.0),))
    snapshot = Snapshot((state("cuda:0", lease("a")),))
    (user,) = join(snapshot, [seen(own)]).users
    assert user.lease_id == "a"


def test_a_number_that_was_used_again_covers_nobody():
    """Rule: an ancestor that is younger than the lease is not its holder."""
    other = process(7, ancestry=((7, 2005.0), (100, 2000.0)))
    foreign, waiting = sorted(
        join(Snapshot((state("cuda:0", lease("a")),)), [seen(other)]).users,
        key=lambda user: user.listed,
        reverse=True,
    )
    assert foreign.foreign
    assert foreign.lease_id is None
    assert (waiting.lease_id, waiting.listed) == ("a", False)


def test_a_lease_on_another_device_does_not_cover():
    """Rule: who leased one card and works on two is foreign on the other."""
    wanderer = process(7, lease_ids=("a",))
    everybody = join(
        Snapshot((state("cuda:0", lease("a")), state("cuda:1"))),
        [seen(), seen(wanderer, device_id="cuda:1")],
    )
    assert [(one.device_id, one.foreign) for one in everybody.users] == [
        ("cuda:0", False),
        ("cuda:1", True),
    ]


def test_a_lease_without_a_process_is_a_row():
    """Rule: what is reserved counts before anything is on the device, with its holder."""
    held = lease("a", exclusive=True)
    (user,) = join(Snapshot((state("cuda:0", held),)), [seen()]).users
    assert (user.pid, user.user, user.since) == (100, "alice", 1000.0)
    assert (user.listed, user.foreign, user.exclusive) == (False, False, True)
    assert user.memory_bytes is None
    assert user.reason == NOTHING_YET


def test_a_device_that_does_not_tell_has_its_leases_and_the_reason():
    """Rule: no list is no empty list."""
    told = [seen(reason="the driver gave no answer")]
    everybody = join(Snapshot((state("cuda:0", lease("a")), state("cuda:1"))), told)
    assert [user.reason for user in everybody.users] == [LEASES_ONLY]
    assert everybody.untold == {
        "cuda:0": "the driver gave no answer",
        "cuda:1": "nobody asked its driver",
    }


def test_the_host_has_leases_only():
    """Rule: every process works on the CPU; that its list is not told is no defect."""
    host = state("cpu:0", device_class=DeviceClass.HOST)
    everybody = join(Snapshot((host,)), [seen(device_id="cpu:0", reason="it cannot")])
    assert everybody.untold == {"cpu:0": EVERYBODY}


def test_what_is_not_known_has_its_reasons():
    """Rule: memory that the driver hides is None, beside what the system hides."""
    hidden = process(7, memory_bytes=None, user=None, reason="another user's")
    (user,) = join(Snapshot((state(),)), [seen(hidden)]).users
    assert (user.memory_bytes, user.user) == (None, None)
    assert user.reason.startswith("another user's; ")


PIDS = st.integers(min_value=1, max_value=6)
PROCESSES = st.builds(
    process,
    PIDS,
    memory_bytes=st.none() | st.integers(0, GIB),
    lease_ids=st.lists(st.sampled_from("abcd"), max_size=2).map(tuple),
    ancestry=st.lists(st.tuples(PIDS, st.floats(0, 2000)), max_size=3).map(tuple),
)
LEASES = st.lists(
    st.builds(lease, st.sampled_from("abc"), pid=PIDS), unique_by=lambda x: x.lease_id
)


@given(
    st.lists(PROCESSES, unique_by=lambda one: one.pid, max_size=6),
    LEASES,
    st.sampled_from(["", "hung"]),
)
def test_nobody_is_lost_and_nobody_is_there_twice(processes, leases, reason):
    """Rule: every listed process is one row, and every lease is on a row, alone only if unused."""
    snapshot = Snapshot((state("cuda:0", *leases),))
    users = join(snapshot, [seen(*processes, reason=reason)]).users
    listed = [user for user in users if user.listed]
    alone = [user for user in users if not user.listed]
    assert Counter(user.pid for user in listed) == Counter(one.pid for one in processes)
    assert {user.lease_id for user in users} - {None} == {one.lease_id for one in leases}
    assert {user.lease_id for user in alone}.isdisjoint({user.lease_id for user in listed})
    assert len({user.lease_id for user in alone}) == len(alone)
    assert all(user.foreign == (user.lease_id is None) for user in users)


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_is_the_same_however_they_are_listed(order):
    """Rule: what is leased comes first, then what takes most."""
    rows = [
        process(3, memory_bytes=None),
        process(1, memory_bytes=5),
        process(2, memory_bytes=9),
        process(4, memory_bytes=1, lease_ids=("a",)),
    ][::order]
    users = join(Snapshot((state("cuda:0", lease("a")),)), [seen(*rows)]).users
    assert [user.pid for user in users] == [4, 2, 1, 3]
