"""Gangs: all or nothing, and of all that will do those whose slowest link is the fastest."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.gangs import EXACT_DEVICES, Links, find_gang
from exo.gpu.scheduling.selector import explain, refusal_message, select
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.links import Interconnect, Link, LinkKind, Route
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import Snapshot
from tests.scheduling.states import lease, state

NVLINK, SWITCH, BRIDGE = LinkKind.NVLINK, LinkKind.SWITCH, LinkKind.HOST_BRIDGE


def joined(*groups, kind=NVLINK):
    """Links of one kind between each two of a group, in both directions."""
    return tuple(
        Link(source=f"cuda:{one}", target=f"cuda:{other}", kind=kind)
        for group in groups
        for one, other in itertools.permutations(group, 2)
    )


def cards(count, **facts):
    # The first has the most free memory: without links, the first would be chosen.
    return tuple(state(f"cuda:{one}", 24, one / 4, **facts) for one in range(count))


def choose(states, links, **asked):
    return select(Snapshot(tuple(states), links=links), Request(**asked))


class TestTwoIslands:
    """Eight cards; 0, 2, 4, 6 and 1, 3, 5, 7 are joined by NVLink, the islands by the host."""

    links = (
        *joined((0, 2, 4, 6), (1, 3, 5, 7)),
        *(
            Link(source=f"cuda:{one}", target=f"cuda:{other}", kind=LinkKind.SYSTEM)
            for one, other in itertools.product((0, 2, 4, 6), (1, 3, 5, 7))
        ),
    )

    def test_a_gang_stays_on_one_island(self):
        assert choose(cards(8), self.links, count=2).chosen == ("cuda:0", "cuda:2")
        decision = choose(cards(8), self.links, count=4)
        assert decision.chosen == ("cuda:0", "cuda:2", "cuda:4", "cuda:6")
        assert decision.slowest_link == "nvlink between cuda:0 and cuda:2"

    def test_the_other_island_where_the_first_is_taken(self):
        states = list(cards(8))
        states[2] = msgspec.structs.replace(states[2], leases=(lease("cuda:2"),))
        assert choose(states, self.links, count=4).chosen == (
            "cuda:1",
            "cuda:3",
            "cuda:5",
            "cuda:7",
        )

    def test_more_than_an_island_holds_goes_across(self):
        decision = choose(cards(8), self.links, count=5)
        assert len(decision.chosen) == 5
        assert decision.slowest_link.startswith("system between ")

    def test_more_than_an_island_holds_is_never_where_nvlink_is_a_must(self):
        decision = choose(cards(8), self.links, count=5, interconnect="nvlink")
        assert decision.never
        assert "each two joined by NVLink" in refusal_message(decision)

    def test_an_island_that_is_taken_for_now_is_waited_for(self):
        states = [msgspec.structs.replace(one, leases=(lease("x"),)) for one in cards(8)]
        decision = choose(states, self.links, count=4, interconnect=Interconnect.NVLINK)
        assert not decision.chosen
        assert not decision.never

    def test_the_slowest_link_is_told(self):
        table = Snapshot(cards(8), links=self.links)
        text = explain(select(table, Request(count=2)), table)
        assert "Links:   the slowest is nvlink between cuda:0 and cuda:2" in text


class TestBoxesOfPcie:
    """Two pairs on a switch each, joined by the host bridge."""

    links = (
        *joined((0, 3), (1, 2), kind=SWITCH),
        *joined((0, 1), (0, 2), (3, 1), (3, 2), kind=BRIDGE),
    )

    def test_a_switch_comes_before_the_host(self):
        decision = choose(cards(4), self.links, count=2)
        assert decision.chosen == ("cuda:0", "cuda:3")
        assert decision.slowest_link == "switch between cuda:0 and cuda:3"

    def test_same_switch_is_met_by_a_switch_and_by_better(self):
        asked = {"count": 2, "interconnect": "same_switch"}
        assert choose(cards(4), self.links, **asked).chosen == ("cuda:0", "cuda:3")
        assert choose(cards(4), joined((2, 3)), **asked).chosen == ("cuda:2", "cuda:3")
        assert choose(cards(4), self.links, count=3, interconnect="same_switch").never

    def test_what_is_known_of_one_direction_only_counts(self):
        one_way = (Link(source="cuda:3", target="cuda:2", kind=SWITCH),)
        assert choose(cards(4), one_way, count=2).chosen == ("cuda:2", "cuda:3")

    def test_the_worse_of_two_directions_counts(self):
        unlike = (
            Link(source="cuda:0", target="cuda:1", kind=NVLINK),
            Link(source="cuda:1", target="cuda:0", kind=BRIDGE),
            *joined((2, 3), kind=SWITCH),
        )
        assert choose(cards(4), unlike, count=2).chosen == ("cuda:2", "cuda:3")

    def test_without_any_knowledge_the_order_decides(self):
        decision = choose(cards(4), (), count=2)
        assert decision.chosen == ("cuda:0", "cuda:1")
        assert decision.slowest_link == "an unknown way between cuda:0 and cuda:1"


def on_nodes(*sizes):
    return [
        state(f"rig{node}/cuda:{one}", 24, (node + one) / 4, node=f"rig{node}")
        for node, size in enumerate(sizes)
        for one in range(size)
    ]


def ways(*known):
    return tuple(
        Route(source=one, target=other, latency_seconds=1e-3, bandwidth_bytes_per_second=rate)
        for one, other, rate in known
    )


class TestNodes:
    def test_one_machine_comes_before_two_with_better_devices(self):
        decision = choose(on_nodes(1, 2), (), count=2)
        assert decision.chosen == ("rig1/cuda:0", "rig1/cuda:1")

    def test_across_machines_as_few_as_will_do(self):
        decision = choose(on_nodes(1, 1, 2), (), count=3)
        assert decision.chosen == ("rig0/cuda:0", "rig2/cuda:0", "rig2/cuda:1")
        assert decision.slowest_link.startswith("network between ")

    def test_across_machines_of_the_same_use_those_with_the_fastest_way(self):
        """Rule: as few machines as will do, and of those the ones that reach each other fastest."""
        routes = (
            *ways(("rig0", "rig1", 125e6), ("rig0", "rig2", 125e6)),
            *ways(("rig1", "rig2", 1.25e9), ("rig0", "rig3", 10e9)),
        )
        snapshot = Snapshot(tuple(on_nodes(2, 2, 2, 1)), routes=routes)
        decision = select(snapshot, Request(count=4))
        assert {one.partition("/")[0] for one in decision.chosen} == {"rig1", "rig2"}
        assert "(1250 MB/s)" in decision.slowest_link
        unknown = select(msgspec.structs.replace(snapshot, routes=()), Request(count=4))
        assert {one.partition("/")[0] for one in unknown.chosen} == {"rig0", "rig1"}

    def test_of_a_way_that_was_measured_both_ways_the_slower_counts(self):
        routes = (
            *ways(("rig0", "rig1", 1e9), ("rig1", "rig0", 1e6), ("rig0", "rig2", 1e7)),
            Route(source="rig1", target="rig2", latency_seconds=0.1),
        )
        decision = select(Snapshot(tuple(on_nodes(1, 1, 1)), routes=routes), Request(count=2))
        assert decision.chosen == ("rig0/cuda:0", "rig2/cuda:0")

    def test_a_second_gpu_is_better_than_the_processor_beside_one(self):
        """Rule: where every class may take part, one machine's two cards come before card and CPU."""
        hosts = [
            state(f"rig{node}/cpu:0", 24, 1, node=f"rig{node}", device_class=DeviceClass.HOST)
            for node in range(2)
        ]
        states = [*on_nodes(1, 2), *hosts]
        decision = choose(states, (), count=2, all_devices=True)
        assert decision.chosen == ("rig1/cuda:0", "rig1/cuda:1")

    def test_same_node_is_a_must_where_it_is_asked_for(self):
        decision = choose(on_nodes(1, 2), (), count=3, same_node=True)
        assert decision.never
        assert "on one machine" in decision.never_reason

    def test_a_named_node_is_the_only_one(self):
        assert choose(on_nodes(3, 3), (), count=2, node="rig1").chosen == (
            "rig1/cuda:0",
            "rig1/cuda:1",
        )


def test_a_sound_gang_comes_before_a_better_joined_one_with_a_device_to_be_avoided():
    """Rule: links decide among devices that are equally sound, and never above that."""
    states = list(cards(3))
    states[2] = msgspec.structs.replace(states[2], settings=DeviceSettings(avoid=True))
    assert choose(states, joined((0, 2)), count=2).chosen == ("cuda:0", "cuda:1")


kinds = st.sampled_from([None, *LinkKind])


@given(st.integers(2, 8), st.integers(2, 4), st.data())
def test_no_gang_of_the_same_size_has_a_faster_slowest_link(size, count, data):
    """Rule: the search is exact, and among equals the first in the order given is taken."""
    devices = [one.device for one in cards(size)]
    links = Links(
        Link(source=one.device_id, target=other.device_id, kind=data.draw(kinds))
        for one, other in itertools.combinations(devices, 2)
    )

    def slowest(places):
        pairs = itertools.combinations(places, 2)
        return min(links.level(devices[one], devices[other]) for one, other in pairs)

    gang = find_gang(devices, [0] * size, Request(count=count), links)
    if size < count:
        assert gang is None
        return
    best = max(slowest(places) for places in itertools.combinations(range(size), count))
    first = next(
        places for places in itertools.combinations(range(size), count) if slowest(places) == best
    )
    assert gang.places == first


@pytest.mark.parametrize("count", [2, 4, 8])
def test_beyond_the_exact_search_a_clique_is_still_found(count):
    """Rule: a bounded search on a machine of 64 devices finds the island that is there."""
    devices = [one.device for one in cards(64)]
    assert len(devices) > EXACT_DEVICES
    islands = [tuple(range(start, 64, 8)) for start in range(8)]
    gang = find_gang(devices, [0] * 64, Request(count=count), Links(joined(*islands)))
    assert gang.places == islands[0][:count]
    assert gang.slowest_link.startswith("nvlink")
    alone = Request(count=9, interconnect="nvlink")
    assert find_gang(devices, [0] * 64, alone, Links(joined(*islands))) is None
