"""How many tokens a second pass a placement of layers: a maximum flow, and the time on the way.

A node that holds the layers s up to e takes tokens that have passed s layers or more and fewer than
e, and works on those that are left; it is passed at the rate of its table. Mei and others, Helix:
Serving Large Language Models over Heterogeneous GPUs and Network via Max-Flow, ASPLOS 2025.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.split_network import SINK, SOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.vocabulary.split_network import SplitNetwork

Placement = list[tuple[int, int]]
"""The layers of each node, first and end; equal where it holds none."""

_NOTHING = 1e-9


class Passage(msgspec.Struct, frozen=True):
    """The flow, and for a token on average its seconds and the nodes that it passes."""

    tokens_per_second: float
    token_seconds: float | None
    nodes_on_way: float | None


class FlowGraph:
    """The links of a network by number, ready to be asked about any placement."""

    def __init__(self, network: SplitNetwork) -> None:
        self.network = network
        self.count = len(network.nodes)
        self.rates = [node.tokens_per_second for node in network.nodes]
        number = {node.name: place for place, node in enumerate(network.nodes)}
        inner, ends = network.activation_bytes_per_token, network.token_bytes
        self.entries: list[tuple[int, float, float]] = []
        self.exits: list[tuple[int, float, float]] = []
        self.ways: list[tuple[int, int, float, float]] = []
        for link in network.links:
            outer = link.source == SOURCE or link.target == SINK
            weight = ends if outer else inner
            rate = link.bytes_per_second / weight
            moving = link.latency_seconds + (1.0 / rate if rate else 0.0)
            if link.source == SOURCE and link.target in number:
                self.entries.append((number[link.target], rate, moving))
            elif link.target == SINK and link.source in number:
                self.exits.append((number[link.source], rate, moving))
            elif link.source in number and link.target in number:
                self.ways.append((number[link.source], number[link.target], rate, moving))

    def passage(self, placement: Placement, *, timed: bool = False) -> Passage:
        """What passes; with ``timed`` also how long it takes."""
        flow = _Flow(2 * self.count + 2)
        layers, start, end = self.network.layer_count, 2 * self.count, 2 * self.count + 1
        arcs: list[tuple[int, float]] = []  # number of an arc, seconds of a token on it
        inner: list[int] = []
        for node, (first, last) in enumerate(placement):
            if last > first:
                rate = self.rates[node][last - first - 1]
                inner.append(flow.add(2 * node, 2 * node + 1, rate))
        for node, rate, moving in self.entries:
            first, last = placement[node]
            if last > first == 0:
                arcs.append(
                    (flow.add(start, 2 * node, rate), moving + self._work(node, last, placement))
                )
        for node, rate, moving in self.exits:
            if placement[node][1] == layers and placement[node][0] < layers:
                arcs.append((flow.add(2 * node + 1, end, rate), moving))
        for source, target, rate, moving in self.ways:
            done, (first, last) = placement[source][1], placement[target]
            if placement[source][0] < done and first <= done < last:
                seconds = moving + self._work(target, last - done, placement)
                arcs.append((flow.add(2 * source + 1, 2 * target, rate), seconds))
        total = flow.run(start, end)
        if not timed or total <= _NOTHING:
            return Passage(total, None, None)
        spent = sum(flow.through(arc) * seconds for arc, seconds in arcs)
        passed = sum(flow.through(arc) for arc in inner)
        return Passage(total, spent / total, passed / total)

    def _work(self, node: int, layers: int, placement: Placement) -> float:
        """Seconds of a token for so many of the node's layers, at the node's full rate."""
        first, last = placement[node]
        rate = self.rates[node][last - first - 1]
        return layers / (last - first) / rate if rate else 0.0


class _Flow:
    """Dinic's algorithm on lists: levels by breadth, then paths by depth until none is left."""

    def __init__(self, vertices: int) -> None:
        self.arcs: list[list[int]] = [[] for _ in range(vertices)]
        self.heads: list[int] = []
        self.room: list[float] = []

    def add(self, tail: int, head: int, capacity: float) -> int:
        """An arc; its number."""
        number = len(self.heads)
        self.arcs[tail].append(number)
        self.arcs[head].append(number + 1)
        self.heads += (head, tail)
        self.room += (capacity, 0.0)
        return number

    def through(self, arc: int) -> float:
        """What flows through it."""
        return self.room[arc + 1]

    def run(self, start: int, end: int) -> float:
        """Push as much as there is room for; how much that is."""
        total = 0.0
        while (levels := self._levels(start, end)) is not None:
            nexts = [0] * len(self.arcs)
            while (pushed := self._push(start, end, levels, nexts)) > _NOTHING:
                total += pushed
        return total

    def _levels(self, start: int, end: int) -> list[int] | None:
        levels = [-1] * len(self.arcs)
        levels[start] = 0
        line = deque([start])
        while line:
            vertex = line.popleft()
            for arc in self.arcs[vertex]:
                head = self.heads[arc]
                if levels[head] < 0 and self.room[arc] > _NOTHING:
                    levels[head] = levels[vertex] + 1
                    line.append(head)
        return levels if levels[end] >= 0 else None

    def _push(self, start: int, end: int, levels: Sequence[int], nexts: list[int]) -> float:
        """One path to the end, and what it takes; 0 where there is none."""
        path: list[int] = []
        vertex = start
        while vertex != end:
            arcs = self.arcs[vertex]
            while nexts[vertex] < len(arcs):
                arc = arcs[nexts[vertex]]
                head = self.heads[arc]
                if self.room[arc] > _NOTHING and levels[head] == levels[vertex] + 1:
                    path.append(arc)
                    vertex = head
                    break
                nexts[vertex] += 1
            else:
                if not path:
                    return 0.0
                vertex = self.heads[path.pop() ^ 1]
                nexts[vertex] += 1
        pushed = min(self.room[arc] for arc in path)
        for arc in path:
            self.room[arc] -= pushed
            self.room[arc ^ 1] += pushed
        return pushed
