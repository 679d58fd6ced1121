"""The best contiguous ranges over devices: dynamic programming over sets, or along one order.

A state is how many devices of each kind are in use, and which one came last; its value is a row
with the cost of having covered the first l layers. Devices of one kind are interchangeable, so that
16 cards of two kinds have 81 states instead of 65,536.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exo.gpu.scheduling.split_costs import Costs

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Whole = NDArray[np.int64]

EXACT_DEVICES = 8
"""Up to so many devices every set and order is looked at, whatever it takes."""
_EXACT_WORK = 5e7
"""Sums beyond which a larger set is not: about half a second."""
_SAME = 1e-12

Ranges = tuple[tuple[int, int, int], ...]
"""Device, first layer, end layer; in the order of the layers."""


class Found(msgspec.Struct, frozen=True):
    """A split and what it costs in seconds: their sum, or the longest of them."""

    seconds: float
    ranges: Ranges


class Problem:
    """Costs, with the rule by which those of stages become one: their sum, or the longest.

    ``ceiling`` is the most that a stage or a transfer may take, for sums under a bound.
    """

    def __init__(self, costs: Costs, *, longest: bool, ceiling: float = np.inf) -> None:
        self.costs, self.longest = costs, longest
        self.stages = costs.seconds
        self.ways = costs.transfers if longest else costs.hops
        if np.isfinite(ceiling):
            limit = ceiling * (1 + _SAME)
            self.stages = [np.where(table > limit, np.inf, table) for table in self.stages]
            self.ways = np.where(costs.transfers > limit, np.inf, self.ways)
        self.kinds = _kinds(self)

    def join(self, one: Matrix, other: Matrix) -> Matrix:
        """The cost of both."""
        return np.maximum(one, other) if self.longest else one + other

    @property
    def work(self) -> float:
        """How many sums looking at every set takes."""
        sizes = [len(kind) for kind in self.kinds]
        states = float(np.prod([size + 1.0 for size in sizes]))
        return states * len(sizes) * (self.costs.layer_count + 1.0) ** 2 / 2

    @property
    def exact(self) -> bool:
        """Whether every set can be looked at."""
        return len(self.costs.devices) <= EXACT_DEVICES or self.work <= _EXACT_WORK


def _kinds(problem: Problem) -> list[list[int]]:
    """Devices that can change places without any cost changing, together."""
    kinds: list[list[int]] = []
    for number in range(len(problem.costs.devices)):
        for kind in kinds:
            if _alike(problem, kind[0], number):
                kind.append(number)
                break
        else:
            kinds.append([number])
    return kinds


def _alike(problem: Problem, one: int, other: int) -> bool:
    if problem.costs.devices[one].host or problem.costs.devices[other].host:
        return False
    ways = problem.ways
    rest = np.ones(len(ways), dtype=bool)
    rest[[one, other]] = False
    return (
        np.array_equal(problem.stages[one], problem.stages[other])
        and ways[one, other] == ways[other, one]
        and np.array_equal(ways[one, rest], ways[other, rest])
        and np.array_equal(ways[rest, one], ways[rest, other])
    )


class _Steps:
    """One row for each state and last device, and where its best came from."""

    def __init__(self, problem: Problem, states: int) -> None:
        kinds, width = len(problem.kinds), problem.costs.layer_count + 1
        self.values = np.full((states, kinds, width), np.inf)
        self.layers = np.full((states, kinds, width), -1, dtype=np.int32)
        self.before = np.full((states, kinds, width), -1, dtype=np.int32)


def best_of_all(problem: Problem, most_devices: int) -> Found | None:
    """The best split over at most so many devices, of every set and every order; None for none."""
    kinds = problem.kinds
    sizes = [len(kind) for kind in kinds]
    weights = np.concatenate([[1], np.cumprod([size + 1 for size in sizes])]).astype(int)
    states = int(weights[-1])
    steps = _Steps(problem, states)
    width = problem.costs.layer_count + 1
    start = np.full(width, np.inf)
    start[0] = 0.0
    place = np.arange(width)
    heads = [kind[0] for kind in kinds]
    for state in range(states):
        used = [state // int(weights[k]) % (sizes[k] + 1) for k in range(len(kinds))]
        if sum(used) >= most_devices:
            continue
        for kind, head in enumerate(heads):
            if used[kind] == sizes[kind]:
                continue
            if problem.costs.devices[head].host and state:
                continue
            if state:
                arrived = problem.join(steps.values[state], _way(problem, kinds, kind, used))
                last = arrived.argmin(axis=0)
                reached = arrived[last, place]
            else:
                last, reached = np.full(width, -1), start
            if not np.isfinite(reached).any():
                continue
            totals = problem.join(reached[:, None], problem.stages[head])
            chosen = totals.argmin(axis=0)
            to = state + int(weights[kind])
            steps.values[to, kind] = totals[chosen, place]
            steps.layers[to, kind] = chosen
            steps.before[to, kind] = last[chosen]
    return _walk(problem, steps, [int(one) for one in weights], width - 1)


def _way(problem: Problem, kinds: Sequence[list[int]], kind: int, used: list[int]) -> Matrix:
    """Seconds from the last device, of each kind, to one of this kind, as a column."""
    target = kinds[kind][0]
    column = np.full((len(kinds), 1), np.inf)
    for one, members in enumerate(kinds):
        if not used[one]:
            continue
        if one != kind:
            column[one] = problem.ways[members[0], target]
        elif len(members) > 1:
            column[one] = problem.ways[members[0], members[1]]
    return column


def _walk(problem: Problem, steps: _Steps, weights: list[int], layers: int) -> Found | None:
    """The ranges of the best state, from its end to its beginning."""
    ends = steps.values[:, :, layers]
    flat = int(ends.argmin())
    state, kind = divmod(flat, ends.shape[1])
    if not np.isfinite(ends[state, kind]):
        return None
    seconds = float(ends[state, kind])
    free = [list(members) for members in problem.kinds]
    ranges: list[tuple[int, int, int]] = []
    while layers:
        begin = int(steps.layers[state, kind, layers])
        before = int(steps.before[state, kind, layers])
        ranges.append((free[kind].pop(), begin, layers))
        state, kind, layers = state - weights[kind], before, begin
    return Found(seconds, tuple(reversed(ranges)))


def best_along(problem: Problem, order: Sequence[int]) -> Found | None:
    """The best split over devices in this order, any of which may be left out; None for none."""
    width = problem.costs.layer_count + 1
    place = np.arange(width)
    count = len(order)
    values = np.full((count, width), np.inf)
    layers = np.full((count, width), -1)
    before = np.full((count, width), -1)
    start = np.full(width, np.inf)
    start[0] = 0.0
    for number, device in enumerate(order):
        reached, last = start, np.full(width, -1)
        if number and not problem.costs.devices[device].host:
            way = problem.ways[list(order[:number]), device][:, None]
            arrived = np.vstack([problem.join(values[:number], way), start])
            last = arrived.argmin(axis=0)
            reached = arrived[last, place]
            last = np.where(last == number, -1, last)
        totals = problem.join(reached[:, None], problem.stages[device])
        chosen = totals.argmin(axis=0)
        values[number] = totals[chosen, place]
        layers[number], before[number] = chosen, last[chosen]
    return _walk_order(order, values, layers, before)


def _walk_order(order: Sequence[int], values: Matrix, layers: Whole, before: Whole) -> Found | None:
    end = values.shape[1] - 1
    last = int(values[:, end].argmin())
    if not np.isfinite(values[last, end]):
        return None
    seconds = float(values[last, end])
    ranges: list[tuple[int, int, int]] = []
    while end:
        begin, earlier = int(layers[last, end]), int(before[last, end])
        ranges.append((order[last], begin, end))
        last, end = earlier, begin
    return Found(seconds, tuple(reversed(ranges)))


def total_seconds(problem: Problem, ranges: Ranges) -> float:
    """What these ranges cost by the problem's rule; infinity where one does not fit."""
    parts = [float(problem.stages[device][begin, end]) for device, begin, end in ranges]
    parts += [float(problem.ways[one[0], other[0]]) for one, other in pairwise(ranges)]
    return max(parts) if problem.longest else sum(parts)
