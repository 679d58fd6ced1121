"""What is sent counts: no machine is given more items than its network brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.strategies import Terms, distribute
from exo.gpu.scheduling.transfers import within_network
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.snapshot import Snapshot
from tests.scheduling.states import state

RIGS = Snapshot(
    tuple(
        state(f"{node}/cuda:{one}", 24, 1, node=node)
        for node in ("here", "near", "far")
        for one in range(2)
    )
)
SPEEDS = {one.device.device_id: 10.0 for one in RIGS.devices}
RATES = {"near": 1e9, "far": 5e6}


def split(strategy, tasks, **terms):
    found = distribute(RIGS, range(tasks), strategy, Terms(rates=RATES, **terms))
    return {device_id: len(items) for device_id, items in found.items()}


def test_a_node_behind_a_slow_way_gets_what_the_way_brings():
    """Rule: 20 items a second are done far away, but 5 of 1 MB arrive there."""
    done = split("capacity", 450, capacities=SPEEDS, item_bytes=1e6)
    assert [done[f"{node}/cuda:0"] for node in ("here", "near", "far")] == [100, 100, 25]
    assert split("capacity", 60, capacities=SPEEDS) == dict.fromkeys(SPEEDS, 10)


def test_what_sending_takes_is_part_of_a_cost():
    """Rule: a task goes to the slower device where sending it takes longer than it saves."""
    costs = {"here/cuda:0": [3.0, 3.0], "far/cuda:0": [1.0, 1.0]}
    assert split("cost", 2, costs=costs)["far/cuda:0"] == 2
    assert split("cost", 2, costs=costs, item_bytes=25e6)["here/cuda:0"] == 2


@pytest.mark.parametrize(
    ("strategy", "terms", "named"),
    [
        ("uniform", {"item_bytes": 1.0}, "item_bytes"),
        ("capacity", {"item_bytes": 1.0}, "capacities"),
        ("capacity", {"item_bytes": -1.0, "capacities": SPEEDS}, "item_bytes"),
        ("cost", {"item_bytes": float("nan"), "costs": {}}, "item_bytes"),
    ],
)
def test_what_cannot_be_weighed_is_refused_by_name(strategy, terms, named):
    with pytest.raises(InvalidValue, match=named):
        split(strategy, 2, **terms)


speeds = st.floats(0, 1e6)


@given(st.lists(speeds, min_size=1, max_size=6), st.floats(1, 1e12), st.floats(0, 1e9))
def test_a_node_never_exceeds_its_way_nor_its_devices(capacities, rate, item_bytes):
    """Rule: together they do what arrives, each in proportion to its speed, and never more."""
    given_speeds = {f"rig/{one}": speed for one, speed in enumerate(capacities)}
    nodes = dict.fromkeys(given_speeds, "rig")
    found = within_network(given_speeds, nodes, {"rig": rate}, item_bytes)
    total = sum(found.values())
    assert total * item_bytes <= rate * (1 + 1e-9)
    assert all(found[name] <= speed for name, speed in given_speeds.items())
    free = sum(capacities)
    if free * item_bytes <= rate:
        assert found == given_speeds
    else:
        assert total == pytest.approx(rate / item_bytes, rel=1e-6)
