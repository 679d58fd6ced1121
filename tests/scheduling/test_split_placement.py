"""Layers in a network of nodes: the flow as it is defined, and a search beside every placement."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from exo.gpu.scheduling.split_flow import FlowGraph
from exo.gpu.scheduling.split_placement import flow_bound, place_layers
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue
from exo.gpu.vocabulary.split_network import SINK, SOURCE, NetworkLink, NetworkNode, SplitNetwork


def network(tables, layers, links=None, rate=1e9):
    """Nodes by their tables; all are joined unless links are given."""
    names = [str(number) for number in range(len(tables))]
    if links is None:
        links = [(SOURCE, one) for one in names] + [(one, SINK) for one in names]
        links += [(one, other) for one in names for other in names if one != other]
    return SplitNetwork(
        nodes=tuple(
            NetworkNode(name=name, tokens_per_second=tuple(table))
            for name, table in zip(names, tables, strict=True)
        ),
        links=tuple(
            NetworkLink(source=a, target=b, bytes_per_second=rate, latency_seconds=1e-3)
            for a, b in links
        ),
        layer_count=layers,
        activation_bytes_per_token=1000,
    )


def flow(net, places):
    return FlowGraph(net).passage(places, timed=True)


def test_a_chain_passes_what_its_slowest_node_does():
    """Rule: one node after the other, and the time of all on the way."""
    net = network([[10.0, 4.0], [8.0, 6.0]], 3)
    passage = flow(net, [(0, 2), (2, 3)])
    assert passage.tokens_per_second == pytest.approx(4.0)
    assert passage.nodes_on_way == pytest.approx(2)
    assert passage.token_seconds == pytest.approx(1 / 4 + 1 / 8 + 3e-3 + 1e-6 + 2 * 2e-9)


def test_nodes_that_overlap_share_the_flow():
    """Rule: a node takes tokens anywhere within its layers, and does what is left of them."""
    net = network([[9.0, 9.0], [5.0, 5.0], [9.0, 2.0]], 3)
    # Node 1 takes up what node 0 has done, in the middle of its own layers.
    assert flow(net, [(0, 2), (1, 3), (2, 3)]).tokens_per_second == pytest.approx(9.0)
    assert flow(net, [(0, 2), (1, 3), (0, 0)]).tokens_per_second == pytest.approx(5.0)


def test_a_gap_or_a_missing_link_passes_nothing():
    """Rule: every layer is somewhere, and there is a way to it."""
    net = network([[9.0, 9.0], [9.0, 9.0]], 3)
    assert flow(net, [(0, 1), (2, 3)]).tokens_per_second == 0
    one_way = network([[9.0, 9.0], [9.0, 9.0]], 3, [(SOURCE, "0"), ("0", "1"), ("1", SINK)])
    assert flow(one_way, [(0, 2), (2, 3)]).tokens_per_second == pytest.approx(9.0)
    assert flow(one_way, [(2, 3), (0, 2)]).tokens_per_second == 0


def test_a_narrow_link_bounds_the_flow():
    """Rule: between nodes an activation travels, at the ends a token's number."""
    net = network([[9.0, 9.0], [9.0, 9.0]], 3, rate=2000.0)
    assert flow(net, [(0, 2), (2, 3)]).tokens_per_second == pytest.approx(2.0)


def every_placement(net):
    graph = FlowGraph(net)
    layers = net.layer_count
    ranges = [
        [(0, 0)]
        + [
            (first, first + count)
            for count in range(1, min(len(node.tokens_per_second), layers) + 1)
            for first in range(layers - count + 1)
        ]
        for node in net.nodes
    ]
    return max(graph.passage(list(places)).tokens_per_second for places in product(*ranges))


def test_the_search_is_near_every_placement_tried_and_under_its_bound():
    """Rule: on small networks it finds the best flow nearly always, and the bound is never below it."""
    lots, found = Random(3), []
    for number in range(18):
        tables = []
        for _ in range(4):
            best = lots.uniform(2, 20)
            tables.append([best / k * lots.uniform(0.7, 1.0) for k in range(1, lots.randint(2, 4))])
        links = None
        if number % 3 == 0:
            names = ["0", "1", "2", "3"]
            links = [(SOURCE, one) for one in names] + [(one, SINK) for one in names]
            links += [(a, b) for a in names for b in names if a != b and lots.random() < 0.6]
        net = network(tables, lots.randint(2, 5), links)
        best = every_placement(net)
        plan = place_layers(net)
        assert best <= flow_bound(net) * (1 + 1e-9)
        assert plan.tokens_per_second <= best * (1 + 1e-9)
        found.append(plan.tokens_per_second / best if best else 1.0)
    assert min(found) > 0.9
    assert sum(one > 1 - 1e-9 for one in found) >= 16


def test_the_same_lots_give_the_same_placement():
    """Rule: without a clock the answer is decided by its inputs."""
    net = network([[9.0, 4.0, 2.0], [7.0, 3.0], [8.0, 5.0], [3.0]], 5)
    assert place_layers(net, tries=300) == place_layers(net, tries=300)


def test_a_clock_ends_it():
    """Rule: it stops when the given clock says so, with what it has."""
    ticks = iter(range(100))
    net = network([[9.0, 4.0], [7.0, 3.0], [8.0, 5.0]], 4)
    plan = place_layers(net, tries=10**9, seconds=10, clock=lambda: next(ticks))
    assert plan.tokens_per_second > 0


def test_of_equal_flows_the_shorter_way_is_taken():
    """Rule: a node that the flow does not need is not on the way."""
    net = network([[5.0, 5.0, 5.0, 5.0]] * 3, 4)
    plan = place_layers(net)
    assert plan.tokens_per_second >= 5.0
    assert plan.nodes_on_way == pytest.approx(1.0)


def test_a_network_that_cannot_hold_the_model_passes_nothing():
    """Rule: too few places for all layers is an answer, and no error."""
    plan = place_layers(network([[5.0], [5.0]], 3), tries=50)
    assert (plan.tokens_per_second, plan.placement, plan.gap) == (0.0, {}, None)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: NetworkNode(name="source", tokens_per_second=(1.0,)), InvalidValue),
        (lambda: NetworkNode(name="a", tokens_per_second=()), InvalidValue),
        (lambda: NetworkNode(name="a", tokens_per_second=(float("nan"),)), InvalidValue),
        (lambda: network([], 3), InvalidValue),
        (lambda: network([[1.0]], 0), InvalidValue),
        (lambda: network([[1.0]], 1, [("0", "7")]), InvalidValue),
        (
            lambda: SplitNetwork(
                nodes=(NetworkNode(name="a", tokens_per_second=(1.0,)),) * 2,
                links=(),
                layer_count=1,
                activation_bytes_per_token=1,
            ),
            DuplicateDevice,
        ),
    ],
)
def test_networks_that_cannot_be_are_refused(make, error):
    """Rule: no nodes, no layers, a name twice, an unknown end: each is refused when it is made."""
    with pytest.raises(error):
        make()
