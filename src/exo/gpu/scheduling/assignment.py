"""The least makespan on unlike devices: heuristics, a proven bound, and a search between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from exo.gpu.scheduling import exact
from exo.gpu.scheduling.constructive import HEURISTICS, NOWHERE, loads_of, make_room
from exo.gpu.scheduling.improvement import Search
from exo.gpu.scheduling.lots import fixed_lots
from exo.gpu.scheduling.relaxation import relax

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from exo.gpu.scheduling.lots import Lots

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]
    Places = NDArray[np.int64]

_ROUNDS = 300
"""Of the search, where no time is given: about as many as a tenth of a second allows 100 items."""
_SEARCHED = 0.6
"""Of the time, before the solver takes its part; the search has the rest as well."""
_SOLVED = 0.3
_GREEDY_LIMIT = 2e9
"""Items x items x devices above which min-min and sufferage would take longer than seconds."""
_MET = 1e-9
_NEAR = 1e-5
"""A gap below which more search is of no use to anyone; HiGHS solves to a tenth of that."""


class Assignment(msgspec.Struct, frozen=True):
    """Where each item goes, and how good that is.

    ``places`` has the number of the device of each item, -1 for none. ``loads``, ``makespan`` and
    ``bound`` are in the unit of the costs. No assignment of the placed items ends before ``bound``.
    ``method`` names what found it.
    """

    places: NDArray[np.int64]
    loads: tuple[float, ...]
    makespan: float
    bound: float
    method: str


def assign(
    costs: Matrix,
    *,
    room: Places | None = None,
    ready: Row | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
    lots: Lots | None = None,
    solver: bool = True,
) -> Assignment:
    """Assign all items that fit, so that the last device ends as early as can be found.

    ``costs`` is as :func:`~exo.gpu.scheduling.costs.check_costs` returns it; ``room`` is the most
    items each device takes, ``ready`` what it has to do before. With ``seconds`` and the ``clock``
    to count them by it stops then, else after ``rounds``, and the same lots give the same answer.
    """
    items, devices = costs.shape
    most = np.full(devices, items, dtype=np.int64)
    if room is not None:
        most = np.minimum(room, most)
    begun = np.zeros(devices, dtype=np.float64)
    if ready is not None:
        begun = ready
    budget = _Budget(seconds, clock, rounds)
    name, places = _best_heuristic(costs, most, begun)
    placed = np.flatnonzero(places != NOWHERE)
    if placed.size:
        found = _Problem(costs[placed], most, begun, budget, lots or fixed_lots())
        name, places[placed], bound = found.solve(name, places[placed], solver=solver)
    else:
        bound = float(begun.max(initial=0.0))
    loads = loads_of(costs, places, begun)
    makespan = float(loads.max(initial=0.0))
    return Assignment(places, tuple(loads.tolist()), makespan, min(bound, makespan), name)


class _Budget:
    """How long may be worked: a part of the seconds, or a number of rounds."""

    def __init__(
        self, seconds: float | None, clock: Callable[[], float] | None, rounds: int | None
    ) -> None:
        self.clock = clock if seconds is not None else None
        self.seconds = seconds if clock is not None else None
        self.began = self.clock() if self.clock else 0.0
        self.rounds = _ROUNDS if rounds is None and self.clock is None else rounds

    def over(self, part: float = 1.0) -> Callable[[], bool]:
        """A question: is this part of the time gone?"""
        return lambda: self.left(part) == 0

    def left(self, part: float = 1.0) -> float | None:
        """Seconds until this part is gone, 0 once it is; None without a limit."""
        if self.clock is None or self.seconds is None:
            return None
        return max(0.0, self.began + part * self.seconds - self.clock())


class _Problem:
    """Items that all have a place, which may be a poor one."""

    def __init__(
        self, costs: Matrix, room: Places, ready: Row, budget: _Budget, draw: Lots
    ) -> None:
        self.costs, self.room, self.ready = costs, room, ready
        self.budget, self.draw = budget, draw

    def solve(self, name: str, places: Places, *, solver: bool) -> tuple[str, Places, float]:
        """What found the best, its places, and the bound."""
        makespan = float(loads_of(self.costs, places, self.ready).max())
        bound = self._simple_bound()
        if makespan <= bound * (1 + _MET):
            return name, places, bound
        relaxed = relax(self.costs, self.ready, makespan, self.budget.over())
        bound = max(bound, relaxed.bound)
        if makespan <= bound * (1 + _MET) or relaxed.bound <= 0:
            return name, places, bound
        search = Search(self.costs, self.ready, self.room, relaxed, self.draw)
        found, proven = self._search(search, places, bound / relaxed.bound, solver=solver)
        best = search.best
        if best is not None and loads_of(self.costs, best.places, self.ready).max() < makespan:
            name, places = found, best.places
        return name, places, max(bound, proven * relaxed.bound)

    def _search(
        self, search: Search, places: Places, least: float, *, solver: bool
    ) -> tuple[str, float]:
        """Search, ask the solver, search on; what found the best, and the bound that was proven.

        ``least`` and what is proven are in multiples of the relaxation's bound.
        """
        solver = solver and exact.is_here()
        share, rounds = (_SEARCHED, self._rounds(2)) if solver else (1.0, self._rounds(1))
        search.start([places], self._finished(search, least, 1.0))
        search.improve(rounds, self._finished(search, least, share))
        if not solver or self._finished(search, least, 1.0)():
            return "local search", least
        before = search.gap
        least = max(least, self._ask(search))
        name = "restricted MILP" if search.gap < before else "local search"
        before = search.gap
        search.improve(rounds, self._finished(search, least, 1.0))
        return ("local search" if search.gap < before else name), least

    def _simple_bound(self) -> float:
        """No item ends before its cheapest cost on a device that is ready, and none is negative."""
        return max(float((self.costs + self.ready).min(axis=1).max()), float(self.ready.max()))

    def _rounds(self, parts: int) -> int | None:
        return None if self.budget.rounds is None else self.budget.rounds // parts

    def _finished(self, search: Search, least: float, part: float) -> Callable[[], bool]:
        """A question: is this part of the time gone, or the bound met?"""
        over = self.budget.over(part)
        return lambda: over() or search.gap + 1 <= least * (1 + _NEAR)

    def _ask(self, search: Search) -> float:
        """Let the solver try; what it proves, in multiples of the relaxation's bound."""
        assert search.best is not None
        answer = exact.solve(
            search.costs,
            search.ready,
            self.room,
            waste=search.steps.waste,
            places=search.best.places,
            seconds=self.budget.left(_SEARCHED + _SOLVED),
        )
        if answer.places is not None:
            search.offer(answer.places)
        return answer.bound or 0.0


def _best_heuristic(costs: Matrix, room: Places, ready: Row) -> tuple[str, Places]:
    """The name and places of the best, first by items placed, then by makespan."""
    small = len(costs) * costs.size <= _GREEDY_LIMIT
    best: tuple[int, float] | None = None
    chosen = "", np.full(len(costs), NOWHERE)
    for name, heuristic in HEURISTICS.items():
        if not small and name in {"min-min", "sufferage"}:
            continue
        if not costs.size:
            break
        places = heuristic(costs, room, ready)
        make_room(costs, places, room)
        score = int((places == NOWHERE).sum()), float(loads_of(costs, places, ready).max())
        if best is None or score < best:
            best, chosen = score, (name, places)
    return chosen
