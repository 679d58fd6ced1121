"""How long work will take, from similar work that came at about the same time.

People submit in bursts: what came just before and just after, from the same group and for as many
devices, takes about as long. The future is not looked at: an estimate changes as others end.
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Hashable
from typing import NamedTuple

# Taken of those that came nearest: enough that a single crash says little.
NEIGHBOURS = 5

# What the nearest weigh at most: those that came within half a minute are alike.
CLOSE_SECONDS = 30.0

# Of one whose nearest known neighbour came longer before or after, nothing is known but the group.
# It is taken to be shorter by this much, so that one of each burst runs soon and tells of the rest.
BURST_SECONDS = 3600.0
UNTRIED_FACTOR = 0.2

# Work of a group of which nothing has ended yet.
FIRST_SECONDS = 1800.0

# What still runs after a time is taken to need twice that in the end, as with heavy tails.
STILL_RUNNING_FACTOR = 2.0

_SHORTEST_SECONDS = 1.0


class _Known(NamedTuple):
    number: int
    arrived_seconds: float
    seconds: float


class ExpectedLength:
    """Lengths by group; ``number`` counts arrivals, and orders them."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[_Known]] = {}

    def ended(
        self, group: Hashable, number: int, arrived_seconds: float, seconds: float
    ) -> tuple[int, int]:
        """Note how long one took, in place of what was noted of it while it ran.

        Only those of the group whose numbers are within the two that are returned, both included,
        can now be expected to take longer or shorter.
        """
        known = self._known.setdefault(group, [])
        place = bisect.bisect_left(known, number, key=_number)
        new = _Known(number, arrived_seconds, max(seconds, _SHORTEST_SECONDS))
        if place < len(known) and known[place].number == number:
            known[place] = new
        else:
            known.insert(place, new)
        before, after = place - NEIGHBOURS, place + NEIGHBOURS
        return (
            known[before].number if before >= 0 else 0,
            known[after].number if after < len(known) else sys.maxsize,
        )

    def still_running(
        self, group: Hashable, number: int, arrived_seconds: float, for_seconds: float
    ) -> tuple[int, int]:
        """Note that one has run for so long and has not ended; returns as :meth:`ended` does."""
        return self.ended(group, number, arrived_seconds, STILL_RUNNING_FACTOR * for_seconds)

    def expected_seconds(self, group: Hashable, number: int, arrived_seconds: float) -> float:
        """The mean of the nearest neighbours' lengths: of their logarithms, the nearest most."""
        known = self._known.get(group)
        if not known:
            return FIRST_SECONDS
        place = bisect.bisect_left(known, number, key=_number)
        around = known[max(0, place - NEIGHBOURS) : place + NEIGHBOURS]
        near = sorted((abs(one.arrived_seconds - arrived_seconds), one.seconds) for one in around)
        near = near[:NEIGHBOURS]
        if near[0][0] > BURST_SECONDS:
            mean = sum(math.log(seconds) for _, seconds in near) / len(near)
            return UNTRIED_FACTOR * math.exp(mean)
        weights = [1.0 / (distance + CLOSE_SECONDS) for distance, _ in near]
        logarithms = (
            weight * math.log(seconds) for weight, (_, seconds) in zip(weights, near, strict=True)
        )
        return math.exp(sum(logarithms) / sum(weights))


def _number(one: _Known) -> int:
    return one.number
