"""Where the layers go in a network of nodes: chains to begin with, then a search, under a bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exo.gpu.scheduling.lots import fixed_lots
from exo.gpu.scheduling.split_flow import FlowGraph, Placement
from exo.gpu.vocabulary.split_network import NetworkPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exo.gpu.scheduling.lots import Lots
    from exo.gpu.vocabulary.split_network import SplitNetwork

_WORK = 60_000
"""Nodes of placements that are looked at: 2,500 placements of 24 nodes, in a few seconds."""
_MET = 1e-9
_HALVINGS = 100
_COVERED_PART = 0.2
"""What a layer that is covered counts beside what flows: it leads across plateaus of the flow."""
_WARM, _COLD = 0.4, 0.001
"""A loss that is taken now and then, as a part of the best flow, where a round begins and ends."""
_ROUNDS = 4
"""Times that the search begins anew from the best."""


def place_layers(
    network: SplitNetwork,
    *,
    tries: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
    lots: Lots | None = None,
) -> NetworkPlan:
    """The placement with the largest flow that is found, and a bound that nothing exceeds.

    Of equal flows the one with less time on the way. It ends at the bound, after so many ``tries``,
    or after ``seconds`` by the ``clock``; without those the same lots give the same answer.
    """
    search = _Search(network, lots or fixed_lots())
    deadline = None if seconds is None or clock is None else clock() + seconds

    def over() -> bool:
        return deadline is not None and clock is not None and clock() >= deadline

    for placement in _starts(network):
        search.offer("chain", placement)
        if over():
            break
    search.anneal(_WORK // len(network.nodes) if tries is None else tries, over)
    passage = search.graph.passage(search.best, timed=True)
    return NetworkPlan(
        placement={
            node.name: place
            for node, place in zip(network.nodes, search.best, strict=True)
            if place[1] > place[0]
        },
        tokens_per_second=passage.tokens_per_second,
        bound=max(search.bound, passage.tokens_per_second),
        token_seconds=passage.token_seconds,
        nodes_on_way=passage.nodes_on_way,
        method=search.method,
    )


def flow_bound(network: SplitNetwork) -> float:
    """Above any flow F: every layer is passed F times, and k layers of a node at most k min(T, F).

    Found by halving, since what the nodes can do grows no faster than what is asked.
    """
    layers = network.layer_count
    tables = [node.tokens_per_second[:layers] for node in network.nodes]

    def enough(flow: float) -> bool:
        done = sum(
            max((count + 1) * min(rate, flow) for count, rate in enumerate(table))
            for table in tables
        )
        return done >= layers * flow * (1 - 1e-12)

    low, high = 0.0, sum(max(table) for table in tables)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return high


def _starts(network: SplitNetwork) -> Iterator[Placement]:
    """One chain of all nodes, two chains of half of them, and so on, each in several orders."""
    tables = [node.tokens_per_second for node in network.nodes]
    numbers = range(len(tables))
    strong = sorted(numbers, key=lambda one: -max(k * t for k, t in enumerate(tables[one], 1)))
    for chains in range(1, max(1, len(tables) // 2) + 1):
        groups = [strong[start::chains] for start in range(chains)]
        for turned in (False, True):
            placement: Placement = [(0, 0)] * len(tables)
            for group in groups:
                ordered = group[::-1] if turned else group
                for node, place in _chain([tables[one] for one in ordered], network.layer_count):
                    placement[ordered[node]] = place
            yield placement


def _chain(tables: Sequence[Sequence[float]], layers: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Each node as many layers as it can hold at the highest rate at which all are held."""
    rates = sorted({rate for table in tables for rate in table}, reverse=True)
    for rate in rates:
        counts = [
            max((k for k, t in enumerate(table, 1) if t >= rate), default=0) for table in tables
        ]
        if sum(counts) >= layers:
            break
    else:
        return
    surplus, begin = sum(counts) - layers, 0
    for node, count in enumerate(counts):
        # Who is left out shortens the way; else the surplus comes off where it is.
        kept = 0 if count <= surplus else count
        surplus -= count - kept
        counts[node] = kept
    for node, count in enumerate(counts):
        taken = min(count, layers - begin)
        if taken > 0:
            yield node, (begin, begin + taken)
            begin += taken


class _Search:
    """The best so far, and simulated annealing from it."""

    def __init__(self, network: SplitNetwork, draw: Lots) -> None:
        self.network, self.draw = network, draw
        self.graph = FlowGraph(network)
        self.bound = flow_bound(network)
        self.best: Placement = [(0, 0)] * len(network.nodes)
        self.flow, self.seconds = 0.0, math.inf
        self.method = "none"
        self._numbers: list[float] = []

    def offer(self, method: str, placement: Placement) -> float:
        """Take a placement where it is better; what flows through it."""
        passage = self.graph.passage(placement, timed=True)
        flow = passage.tokens_per_second
        seconds = math.inf if passage.token_seconds is None else passage.token_seconds
        better = flow > self.flow * (1 + _MET)
        if better or (flow >= self.flow * (1 - _MET) and seconds < self.seconds):
            self.best, self.flow, self.seconds = placement.copy(), flow, seconds
            self.method = method
        return flow

    def _lot(self) -> float:
        if not self._numbers:
            self._numbers = self.draw(1024).tolist()
        return self._numbers.pop()

    def _below(self, count: int) -> int:
        return min(count - 1, int(self._lot() * count))

    def anneal(self, tries: int, over: Callable[[], bool]) -> None:
        """Try neighbours in rounds, each of which begins with the best so far."""
        for _ in range(_ROUNDS):
            self._round(-(-tries // _ROUNDS), over)

    def _round(self, tries: int, over: Callable[[], bool]) -> None:
        """Take worse placements now and then, ever more seldom."""
        now, value = self.best.copy(), self._value(self.best, self.flow)
        scale = max(self.flow, _COVERED_PART * self.bound, 1e-12)
        for number in range(tries):
            if over() or self.flow >= self.bound * (1 - _MET):
                return
            changed = self._neighbour(now)
            found = self._value(changed, self.offer("search", changed))
            heat = scale * _WARM * (_COLD / _WARM) ** (number / tries)
            if found >= value or self._lot() < math.exp((found - value) / heat):
                now, value = changed, found

    def _value(self, placement: Placement, flow: float) -> float:
        """What flows, and a part of what could if the layers were joined better."""
        covered = [0.0] * self.network.layer_count
        for node, (first, last) in enumerate(placement):
            if last > first:
                rate = self.graph.rates[node][last - first - 1]
                for layer in range(first, last):
                    covered[layer] += rate
        useful = sum(min(one, self.bound) for one in covered) / len(covered)
        return flow + _COVERED_PART * (min(covered) + useful) / 2

    def _neighbour(self, placement: Placement) -> Placement:
        """One node elsewhere, two that change places, or a border between two that moves."""
        changed = placement.copy()
        node, layers = self._below(len(changed)), self.network.layer_count
        choice = self._lot()
        if choice < 0.35:
            other = self._below(len(changed))
            changed[node], changed[other] = changed[other], changed[node]
            for one in (node, other):
                changed[one] = self._within(one, *changed[one])
        elif choice < 0.7:
            first, last = changed[node]
            step = 1 if self._lot() < 0.5 else -1
            changed[node] = self._within(node, first, last + step)
            for other, (begin, end) in enumerate(placement):
                if other != node and begin == last and self._lot() < 0.7:
                    changed[other] = self._within(other, begin + step, end)
        else:
            count = 1 + self._below(min(len(self.graph.rates[node]), layers))
            changed[node] = self._within(node, *self._aligned(placement, node, count))
        return changed

    def _aligned(self, placement: Placement, node: int, count: int) -> tuple[int, int]:
        """A range of so many layers: anywhere, or where another one ends or begins."""
        layers, choice = self.network.layer_count, self._lot()
        other = placement[self._below(len(placement))]
        if choice < 0.3 or other == placement[node]:
            first = self._below(layers)
        elif choice < 0.65:
            first = other[1] % layers
        else:
            first = (other[0] or layers) - count
        return max(first, 0), first + count

    def _within(self, node: int, first: int, last: int) -> tuple[int, int]:
        """The nearest range that the node can hold."""
        layers = self.network.layer_count
        first = min(max(first, 0), layers - 1)
        last = min(max(last, first + 1), layers, first + len(self.graph.rates[node]))
        return first, last
