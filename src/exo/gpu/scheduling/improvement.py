"""Iterated local search: descend, disturb a little where it costs little, descend again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exo.gpu.scheduling.neighbourhood import Neighbourhood, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from exo.gpu.scheduling.lots import Lots
    from exo.gpu.scheduling.relaxation import Relaxation

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Places = NDArray[np.int64]

# Chosen by trials on generated instances; half or twice as much changes the mean gap by a tenth.
_STARTS = 10
"""Roundings of the relaxation that are tried before the best is disturbed."""
_MOST_DISTURBED = 5
"""Items that one disturbance puts elsewhere, at most."""
_TEMPERATURE = 0.1
"""A place is drawn with weight exp(-waste / temperature), in fair shares of an item."""
_TOLERANCE = 0.15
"""How much worse a round may end to be gone on from: of the gap, times an exponential lot."""
_LARGEST_EXPONENT = 700.0


class Search:
    """The search for one problem, in multiples of the relaxation's bound, which must be above 0."""

    def __init__(
        self, costs: Matrix, ready: Row, room: Places, relaxation: Relaxation, draw: Lots
    ) -> None:
        self.costs, self.ready = costs / relaxation.bound, ready / relaxation.bound
        self.room, self.draw = room, draw
        self.steps = Neighbourhood(self.costs, relaxation.weights, room)
        self.cumulated_parts = relaxation.parts.cumsum(axis=1)
        self.items, self.places = self.steps.cheapest(2 * len(costs))
        waste = self.steps.waste[self.items, self.places] * len(costs) / _TEMPERATURE
        self.cumulated_weights = np.exp(-np.minimum(waste, _LARGEST_EXPONENT)).cumsum()
        self.current: Standing | None = None
        self.best: Standing | None = None

    def start(self, given: Iterable[Places], is_over: Callable[[], bool]) -> None:
        """Descend from the assignments given, then from roundings of the relaxation."""
        for places in given:
            self._try(places)
        for _ in range(_STARTS):
            if is_over():
                break
            lots = self.draw(len(self.costs))[:, None] * self.cumulated_parts[:, -1:]
            places = (lots >= self.cumulated_parts).sum(axis=1)
            fits = np.isfinite(self.costs[np.arange(len(places)), places])
            if fits.all() and (np.bincount(places, minlength=len(self.room)) <= self.room).all():
                self._try(places)

    def improve(self, rounds: int | None, is_over: Callable[[], bool]) -> None:
        """Disturb and descend, ``rounds`` times, or until it is over or the bound is met."""
        assert self.best is not None
        done = 0
        while (rounds is None or done < rounds) and not is_over() and self.gap > 1e-9:
            self._try(self._disturbed())
            done += 1

    def offer(self, places: Places) -> None:
        """Go on from an assignment found elsewhere."""
        self._try(places)

    @property
    def gap(self) -> float:
        """How far the best makespan is from the bound, relatively."""
        return np.inf if self.best is None else float(self.best.loads.max()) - 1

    def _try(self, places: Places) -> None:
        standing = Standing(self.costs, self.ready, places)
        self.steps.descend(standing)
        makespan = float(standing.loads.max())
        if self.best is None or self.current is None:
            self.current = self.best = standing
            return
        if makespan < self.best.loads.max():
            self.best = standing
        leeway = -np.log1p(-self.draw(1)[0]) * _TOLERANCE * self.gap
        if makespan <= self.current.loads.max() + leeway:
            self.current = standing

    def _disturbed(self) -> Places:
        """The current assignment with a few items at places that waste little."""
        assert self.current is not None
        standing = Standing(self.costs, self.ready, self.current.places)
        lots = self.draw(1 + _MOST_DISTURBED)
        count = 1 + int(lots[0] * _MOST_DISTURBED)
        drawn = lots[1 : 1 + count] * self.cumulated_weights[-1]
        for lot in drawn:
            pick = int(self.cumulated_weights.searchsorted(lot, side="right"))
            item, device = int(self.items[pick]), int(self.places[pick])
            before = int(standing.places[item])
            if device == before:
                continue
            if standing.counts[device] >= self.room[device]:
                back = np.flatnonzero(standing.places == device)
                if not back.size:
                    continue
                other = int(back[self.steps.waste[back, before].argmin()])
                if not np.isfinite(self.costs[other, before]):
                    continue
                standing.put(other, before)
            standing.put(item, device)
        return standing.places
