"""The policy ``fragmentation`` over the devices of one moment."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.scheduling.device_losses import DeviceLosses
from exo.gpu.scheduling.selector import explain, facts_of, rank, select
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.request import Request
from tests.scheduling.states import GIB, lease, snapshot, state


def asked(**what):
    return Request(policy="fragmentation", **what)


def held(device_id, *sizes, total=24, **facts):
    """A device with leases of so many GiB, all of it in use."""
    leases = tuple(
        msgspec.structs.replace(lease(device_id, size, before=0), lease_id=f"{device_id} {n}")
        for n, size in enumerate(sizes)
    )
    return state(device_id, total, sum(sizes), leases=leases, **facts)


def test_a_rest_that_is_usually_asked_for_is_left_whole():
    """Rule: 6 GiB do not go where 12 are left, while halves are what is asked for; pack does that."""
    table = snapshot(held("cuda:0", 12), held("cuda:1", 18), held("cuda:2", 12, 12))
    small = {"memory_bytes": 6 * GIB}
    assert select(table, asked(**small)).chosen == ("cuda:1",)
    halves = snapshot(held("cuda:0", 12), held("cuda:1", 12), held("cuda:2", 6))
    assert select(halves, asked(**small)).chosen == ("cuda:2",)
    assert select(halves, Request(policy="pack", **small)).chosen == ("cuda:0",)


def test_whole_devices_are_spared():
    """Rule: a part of a device goes beside other parts, and an idle device stays whole."""
    table = snapshot(state("cuda:0", 24, 0), held("cuda:1", 8))
    assert select(table, asked(memory_bytes=8 * GIB)).chosen == ("cuda:1",)
    assert select(table, asked(share=0.3)).chosen == ("cuda:1",)


def test_several_devices_at_once_are_weighed_together():
    """Rule: a gang takes whole devices; one on which it does not fit scores nothing."""
    idle = [state(f"cuda:{n}", 24, 0) for n in range(3)]
    decision = select(snapshot(*idle, held("cuda:3", 8)), asked(count=2, exclusive=True))
    assert len(decision.chosen) == 2
    assert "cuda:3" not in decision.chosen


def test_cores_are_kept_for_the_devices_beside_them():
    """Rule: work that needs few cores goes to the machine whose cores are scarce."""
    machines = []
    for node, cores in (("few", 4), ("many", 64)):
        machines += [
            state(f"{node}/cuda:0", 24, 0, node=node),
            state(f"{node}/cpu:0", 64, 0, node=node, device_class=DeviceClass.HOST, slots=cores),
        ]
    greedy = msgspec.structs.replace(lease("many/cuda:0", 4), host_cpus=8)
    machines[2] = msgspec.structs.replace(machines[2], leases=(greedy,))
    chosen = select(snapshot(*machines), asked(memory_bytes=4 * GIB, host_cpus=4)).chosen
    assert chosen == ("many/cuda:0",)


def test_it_says_what_it_goes_by():
    """Rule: every device has its term with the part that is won or lost; the processor has none."""
    cards = [held("cuda:0", 12), held("cuda:1", 18), state("cpu:0", 64, 0, slots=8)]
    cards[2] = msgspec.structs.replace(
        cards[2],
        device=msgspec.structs.replace(cards[2].device, device_class=DeviceClass.HOST),
    )
    table = snapshot(*cards)
    text = explain(select(table, asked(memory_bytes=6 * GIB, all_devices=True)), table)
    flat = " ".join(text.split())
    assert "% of a device for what is usually asked for" in flat
    assert "its memory is not known, or it is the processor: term dropped" in flat


def test_where_it_cannot_fit_nothing_is_lost_or_won():
    """Rule: more than the device has, and more than is free, score 0 and say so."""
    card = held("cuda:0", 20)
    for gib in (10, 30):
        table = snapshot(card)
        losses = DeviceLosses(table, asked(memory_bytes=gib * GIB))
        facts = facts_of(card, 4 * GIB, 24 * GIB)
        assert losses.value(facts) == 0.0
        assert losses.note(facts, 0.0) == "it does not fit"


cards = st.builds(
    lambda number, total, sizes, node: held(f"cuda:{number}", *sizes, total=total, node=node),
    st.integers(0, 99),
    st.sampled_from([12, 24, 80]),
    st.lists(st.sampled_from([2, 3, 4]), max_size=3),
    st.sampled_from(["", "a"]),
)


@settings(max_examples=60)
@given(
    st.lists(cards, max_size=5, unique_by=lambda one: one.device.device_id),
    st.none() | st.integers(1, 90 * GIB),
    st.none() | st.floats(0.01, 1),
    st.integers(1, 3),
)
def test_every_score_is_within_bounds_and_repeats(some, memory_bytes, share, count):
    """Rule: for any devices and request, within 0..1, and the same when asked again."""
    table = snapshot(*some)
    request = asked(memory_bytes=memory_bytes, share=share, count=count)
    scores = rank(table, request)
    assert all(0 <= term.value <= 1 for one in scores for term in one.terms)
    assert scores == rank(snapshot(*some), request)
    assert select(table, request).chosen == select(table, request, brief=True).chosen
