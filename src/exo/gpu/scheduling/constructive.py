"""Building an assignment item by item: MCT, min-min, sufferage and LPT, by their usual names.

Each takes a matrix of costs and how many items each device may take at most, and returns the device
of every item, -1 where it found none. Ready times are what a device has to do before it begins.
The names are those of Braun et al., J. Parallel Distrib. Comput. 61 (2001); LPT is Graham's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Places = NDArray[np.int64]
    Heuristic = Callable[[Matrix, Places, Row], Places]

NOWHERE = -1


def minimum_completion_time(costs: Matrix, room: Places, ready: Row) -> Places:
    """Each item, in the order given, to the device on which it would end first."""
    return _in_order(costs, room, ready, range(len(costs)))


def longest_processing_time(costs: Matrix, room: Places, ready: Row) -> Places:
    """The same, the item whose cheapest cost is largest first."""
    return _in_order(costs, room, ready, np.argsort(-costs.min(axis=1), kind="stable").tolist())


def min_min(costs: Matrix, room: Places, ready: Row) -> Places:
    """Again and again the item that can end first of all, where it does."""
    filling = _Filling(costs, room, ready)
    for _ in range(len(costs)):
        device, item = divmod(int(filling.ends.argmin()), len(costs))
        if filling.ends[device, item] == np.inf:
            break
        filling.put(item, device)
    return filling.places


def sufferage(costs: Matrix, room: Places, ready: Row) -> Places:
    """Again and again the item that would lose most by its second best device, on its best."""
    filling = _Filling(costs, room, ready)
    best = np.zeros((2, len(costs)), dtype=np.int64)
    loss = np.empty(len(costs))
    stale = np.arange(len(costs))
    while True:
        best[:, stale], loss[stale] = _two_best(filling.ends[:, stale])
        item = int(loss.argmax())
        if loss[item] == -np.inf:
            return filling.places
        device = int(best[0, item])
        filling.put(item, device)
        loss[item] = -np.inf
        stale = np.flatnonzero((best == device).any(axis=0) & (filling.places == NOWHERE))


HEURISTICS: dict[str, Heuristic] = {
    "MCT": minimum_completion_time,
    "LPT": longest_processing_time,
    "min-min": min_min,
    "sufferage": sufferage,
}
"""By the names under which a result says who made it."""


def make_room(costs: Matrix, places: Places, room: Places) -> None:
    """Place, in ``places`` itself, what found no device, as far as moving others on allows it.

    An item that fits only where all is taken gets its place along the shortest chain of moves, so
    that afterwards as many items have a device as ever can.
    """
    counts = np.bincount(places[places != NOWHERE], minlength=costs.shape[1])
    closed = np.zeros(costs.shape[1], dtype=np.bool_)  # full, and so is all that moves lead to
    for item in np.flatnonzero(places == NOWHERE).tolist():
        if (closed | np.isinf(costs[item])).all():
            continue
        device, reached = _chain(costs, places, counts < room, item)
        if device == NOWHERE:
            closed[list(reached)] = True
            continue
        counts[device] += 1
        while device != NOWHERE:
            moved, origin = reached[device]
            places[moved] = device
            device = origin


def loads_of(costs: Matrix, places: Places, ready: Row) -> Row:
    """When each device ends, in seconds; items without a place count nowhere."""
    placed = np.flatnonzero(places != NOWHERE)
    where = places[placed]
    return ready + np.bincount(where, costs[placed, where], minlength=costs.shape[1])


def _in_order(costs: Matrix, room: Places, ready: Row, order: Iterable[int]) -> Places:
    loads, left = np.where(room > 0, ready, np.inf), room.copy()
    places = np.full(len(costs), NOWHERE, dtype=np.int64)
    for item in order:
        ends = loads + costs[item]
        device = int(ends.argmin())
        if ends[device] == np.inf:
            continue
        places[item] = device
        left[device] -= 1
        loads[device] = ends[device] if left[device] else np.inf
    return places


class _Filling:
    """When each item would end on each device, by device: a row changes when it takes one."""

    def __init__(self, costs: Matrix, room: Places, ready: Row) -> None:
        self.costs, self.left = costs, room.copy()
        self.ends = costs.T + np.where(room > 0, ready, np.inf)[:, None]
        self.places = np.full(len(costs), NOWHERE, dtype=np.int64)

    def put(self, item: int, device: int) -> None:
        """Give an item to a device."""
        self.places[item] = device
        self.left[device] -= 1
        self.ends[:, item] = np.inf
        self.ends[device] += self.costs[item, device] if self.left[device] else np.inf


def _two_best(ends: Matrix) -> tuple[Places, Row]:
    """The best and the second best device of each item, and what the second would lose."""
    items = np.arange(ends.shape[1], dtype=np.int64)
    first = ends.argmin(axis=0)
    best = ends[first, items]
    others = ends.copy()
    others[first, items] = np.inf
    second = others.argmin(axis=0)
    with np.errstate(invalid="ignore"):
        loss = np.where(best == np.inf, -np.inf, others[second, items] - best)
    return np.stack([first, second]), loss


def _chain(
    costs: Matrix, places: Places, free: NDArray[np.bool_], item: int
) -> tuple[int, dict[int, tuple[int, int]]]:
    """A free device that a chain of moves reaches, and by which move each device was reached."""
    reached: dict[int, tuple[int, int]] = dict.fromkeys(_fitting(costs[item]), (item, NOWHERE))
    line = deque(reached)
    while line:
        device = line.popleft()
        if free[device]:
            return device, reached
        there = np.flatnonzero(places == device)
        for target in _fitting(costs[there].min(axis=0, initial=np.inf)):
            if target not in reached:
                reached[target] = (int(there[costs[there, target].argmin()]), device)
                line.append(target)
    return NOWHERE, reached


def _fitting(costs: Row) -> list[int]:
    return [int(device) for device in np.flatnonzero(np.isfinite(costs))]
