"""Ways between nodes: measured rarely, never under load, and of many nodes only of some."""

from __future__ import annotations

from typing import Any

import pytest

from exo.gpu.nodes.cluster.survey import MOST_TARGETS, PINGS, REPEAT_SECONDS, Surveyor
from exo.gpu.vocabulary.errors import NodeLost


class Far:
    """The way to an agent that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.busy = False

    def ask(self, call: str, *arguments: Any, timeout_seconds: float) -> Any:
        assert timeout_seconds > 0
        self.asked.append(call)
        return {"is_busy": self.busy, "take_bytes": len(arguments[0]) if arguments else 0}.get(call)

    def tell(self, call: str, *arguments: Any) -> None:
        raise AssertionError(call, arguments)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def far():
    return Far()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def surveyor(far, clock):
    busy = []
    found = Surveyor("rig1", lambda name: far, lambda: bool(busy), clock)
    found.busy = busy
    yield found
    found.close()


def test_a_way_is_measured_once_in_a_while(surveyor, far, clock):
    """Rule: a way does not change by itself, and each probe costs those who use it."""
    (route,) = surveyor.routes(("rig2",))
    assert (route.source, route.target) == ("rig1", "rig2")
    assert route.bandwidth_bytes_per_second > 0
    assert far.asked.count("pause") == PINGS
    clock.now += REPEAT_SECONDS - 1
    assert surveyor.routes(("rig2", "rig1")) == (route,) == surveyor.known
    assert far.asked.count("pause") == PINGS
    clock.now += 2
    surveyor.routes(("rig2",))
    assert far.asked.count("pause") == 2 * PINGS


def test_nothing_is_measured_while_anybody_works_here_or_there(surveyor, far):
    surveyor.busy.append("a slot")
    assert surveyor.routes(("rig2",)) == ()
    assert far.asked == []
    surveyor.busy.clear()
    far.busy = True
    assert surveyor.routes(("rig2",)) == ()
    assert far.asked == ["is_busy"]
    far.busy = False
    assert len(surveyor.routes(("rig2",))) == 1


def test_a_node_that_does_not_answer_is_not_asked_again_at_once(clock):
    asked = []

    def reach(name):
        asked.append(name)
        raise NodeLost(f"node {name} has no agent")

    surveyor = Surveyor("rig1", reach, lambda: False, clock)
    try:
        assert surveyor.routes(("rig2",)) == surveyor.routes(("rig2",)) == ()
        assert asked == ["rig2"]
    finally:
        surveyor.close()


def test_of_many_nodes_each_measures_some_and_all_are_joined(far, clock):
    """Rule: unasked, a large cluster is not flooded, and no way around it has a gap."""
    names = [f"rig{number:03}" for number in range(3 * MOST_TARGETS)]
    for name in names:
        surveyor = Surveyor(name, lambda _: far, lambda: True, clock)
        surveyor.aim(names)
        targets = surveyor._targets
        surveyor.close()
        assert len(targets) == MOST_TARGETS
        assert names[(names.index(name) + 1) % len(names)] in targets
        assert name not in targets
