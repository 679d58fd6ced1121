"""The steps of the local search: what may leave the device that ends last, and at what price.

A step must bring down the largest load. Among those that do, the one is taken that wastes least of
what the devices' time is worth (the weights of the relaxation), not the one that brings it down
most: what is wasted now is missing for ever, while loads are levelled easily later. Moves, swaps
and chains of two moves are each looked at all at once, as arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exo.gpu.scheduling.constructive import loads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Places = NDArray[np.int64]

_AT_LEAST = 0.1
"""Of the distance from the largest load to the bound: a smaller gain is none, and costs a step."""
_CANDIDATES = 3
"""How many times its fair share of the items a device is offered: those it wastes least on."""
_PAIRS = 1 << 18
"""Pairs of items that one step looks at; beyond that, every so manieth item may leave."""
_DONE = 1 + 1e-9
"""A largest load, in multiples of the bound, that nothing can improve."""


class Standing:
    """A complete assignment with the load of each device and the number of its items."""

    def __init__(self, costs: Matrix, ready: Row, places: Places) -> None:
        self.costs = costs
        self.places = places.copy()
        self.loads = loads_of(costs, places, ready)
        self.counts = np.bincount(places, minlength=costs.shape[1])

    def put(self, item: int, device: int) -> None:
        """Take an item from where it is to ``device``."""
        before = int(self.places[item])
        self.loads[before] -= self.costs[item, before]
        self.loads[device] += self.costs[item, device]
        self.counts[before] -= 1
        self.counts[device] += 1
        self.places[item] = device


class Neighbourhood:
    """The steps from any assignment of one problem. Costs are in multiples of the bound."""

    def __init__(self, costs: Matrix, weights: Row, room: Places) -> None:
        items, devices = costs.shape
        self.costs, self.weights, self.room = costs, weights, room
        self.flat = costs.ravel()
        worth = weights * costs
        self.waste = worth - worth.min(axis=1, keepdims=True)
        """What an item on a device costs above its cheapest place, in worth."""
        size = min(items, -(-_CANDIDATES * items // devices))
        self.offered = [
            np.sort(np.argpartition(self.waste[:, device], size - 1)[:size])
            for device in range(devices)
        ]
        self.offered_costs = [costs[offered, device] for device, offered in enumerate(self.offered)]
        self.other_items, self.other_places = self.cheapest(items)
        self.other_costs = costs[self.other_items, self.other_places]
        self.other_worth = worth[self.other_items, self.other_places]

    def cheapest(self, count: int) -> tuple[Places, Places]:
        """Items and places of least waste: all that waste nothing, and about ``count`` more."""
        order = min(self.waste.size - 1, len(self.waste) + count)
        limit = np.partition(self.waste, order, axis=None)[order]
        items, places = np.nonzero((self.waste <= limit) & np.isfinite(self.costs))
        return items, places

    def descend(self, standing: Standing) -> None:
        """Step until no step brings the largest load down, or it has met the bound."""
        while standing.loads.max() > _DONE and (self._exchange(standing) or self._chain(standing)):
            pass

    def _leaving(self, standing: Standing, offered: int) -> tuple[int, float, Places]:
        """The device that ends last, the load below which all must come, and who may leave."""
        last = int(standing.loads.argmax())
        largest = float(standing.loads[last])
        there = np.flatnonzero(standing.places == last)
        stride = 1 + len(there) * offered // _PAIRS
        return last, largest - (largest - 1) * _AT_LEAST, there[::stride]

    def _exchange(self, standing: Standing) -> bool:
        """Swap an item of the last device for another, or move it away."""
        last, limit, leaving = self._leaving(standing, len(self.offered[0]))
        if not leaving.size:
            return False
        loads, weights = standing.loads, self.weights
        rows = self.costs[leaving]
        without = loads[last] - rows[:, last]
        moved = rows + loads
        moved[:, (standing.counts >= self.room) | (np.arange(len(loads)) == last)] = np.inf
        price_of_move = rows * weights
        price_of_move -= (rows[:, last] * weights[last])[:, None]
        price_of_move[np.maximum(moved, without[:, None]) >= limit] = np.inf
        coming = self.offered[last]
        origin = standing.places[coming]
        entering = np.where(origin == last, np.inf, self.offered_costs[last])
        own = self.flat.take(coming * len(weights) + origin)
        here = without[:, None] + entering
        there = rows.take(origin, axis=1)
        price = there * weights[origin]
        price += entering * weights[last] - own * weights[origin]
        price -= (rows[:, last] * weights[last])[:, None]
        there += loads[origin] - own
        price[np.maximum(here, there, out=there) >= limit] = np.inf
        move, swap = int(price_of_move.argmin()), int(price.argmin()) if price.size else 0
        cheapest_swap = price.flat[swap] if price.size else np.inf
        if price_of_move.flat[move] <= cheapest_swap:
            if price_of_move.flat[move] == np.inf:
                return False
            row, device = divmod(move, len(weights))
            standing.put(int(leaving[row]), device)
            return True
        row, column = divmod(swap, len(coming))
        standing.put(int(leaving[row]), int(origin[column]))
        standing.put(int(coming[column]), last)
        return True

    def _chain(self, standing: Standing) -> bool:
        """Move an item of the last device to a second one, which ejects another to a third."""
        last, limit, leaving = self._leaving(standing, len(self.other_items))
        loads, weights = standing.loads, self.weights
        second, third = standing.places[self.other_items], self.other_places
        open_ = (second != last) & (second != third) & (third != last)
        open_ &= (loads[third] + self.other_costs < limit) & (standing.counts < self.room)[third]
        chains = np.flatnonzero(open_)
        rows = self.costs[leaving]
        rows = rows[loads[last] - rows[:, last] < limit]
        leaving = leaving[loads[last] - self.costs[leaving, last] < limit]
        if not chains.size or not leaving.size:
            return False
        ejected, second = self.other_items[chains], second[chains]
        own = self.flat.take(ejected * len(weights) + second)
        there = rows.take(second, axis=1)
        price = there * weights[second]
        price += self.other_worth[chains] - own * weights[second]
        price -= (rows[:, last] * weights[last])[:, None]
        there += loads[second] - own
        price[there >= limit] = np.inf
        best = int(price.argmin())
        if price.flat[best] == np.inf:
            return False
        row, column = divmod(best, len(chains))
        standing.put(int(ejected[column]), int(third[chains[column]]))
        standing.put(int(leaving[row]), int(second[column]))
        return True
