"""Jobs that take several like devices at once, over pools of like devices: the least makespan.

A pool is so many devices of one kind. A job runs in one pool on as many of its devices as its
gang has members, from its start to its end without a break. The bound is that of the linear
relaxation in which a pool is one device and a job may be cut in pieces.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from exo.gpu.scheduling.assignment import assign
from exo.gpu.scheduling.constructive import NOWHERE
from exo.gpu.scheduling.costs import check_costs, check_row
from exo.gpu.scheduling.lots import fixed_lots
from exo.gpu.scheduling.relaxation import relax
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exo.gpu.scheduling.lots import Lots

_ROUNDS = 20_000
"""Of the search, where no time is given: a second for a hundred jobs in three pools."""
_HOT, _COLD = 0.03, 0.005
"""Temperatures at the start and the end, in multiples of the bound; twice and half are as good."""
_CYCLES = 5
"""Times that it begins anew: some freeze where two long gangs stand in one another's way."""
_AIM = 0.6
"""How far from the bound to the best makespan the target lies; tried from 0.3 to 0.9."""
_EXCHANGED = 0.75
"""Of the steps to another pool, those that bring jobs back from there."""
_DRAWN = 4096
_NEAR = 1e-4
"""A relative distance to the bound below which more search is of no use to anyone."""


class GangPlan(msgspec.Struct, frozen=True):
    """Where and when each job runs, and how good that is, in the unit of the costs.

    ``pools`` has the number of each job's pool, -1 for one that fits in none, and ``starts`` when
    it begins; ``order`` is the order of the jobs of each pool. No plan of the placed jobs ends
    before ``bound``.
    """

    pools: tuple[int, ...]
    starts: tuple[float, ...]
    order: tuple[tuple[int, ...], ...]
    makespan: float
    bound: float


def assign_gangs(
    costs: Any,
    sizes: Sequence[int],
    counts: Sequence[int],
    *,
    ready: Sequence[Sequence[float]] | None = None,
    order: Sequence[Sequence[int]] | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
    lots: Lots | None = None,
) -> GangPlan:
    """Plan jobs so that the last one ends as early as can be found.

    ``costs`` is a matrix, jobs x pools: how long the whole gang runs there, infinity where it does
    not fit. ``sizes`` is how many devices each job takes, ``counts`` how many each pool has, and
    ``ready`` when each device of each pool is free, 0 by default. ``order`` is a plan to begin
    with, such as one that was made before something turned out otherwise. With ``seconds`` and a
    ``clock`` to count them it stops then, else after ``rounds``, and the same lots give the same
    plan.

    Raises:
        InvalidValue: for costs that are ragged, NaN, negative or infinite everywhere, a size or
            count below 1, or lengths that do not go together.

    """
    times = check_costs(costs)
    for field, values, length in (("sizes", sizes, len(times)), ("counts", counts, None)):
        check_row(field, values, length)
        for index, value in enumerate(values):
            check_whole(f"{field}[{index}]", value, low=1)
    if len(times) and times.shape[1] != len(counts):
        raise InvalidValue("counts", counts, f"{times.shape[1]} numbers, one for each pool")
    free = _free(ready, counts)
    times = np.where(np.array(sizes)[:, None] > np.array(counts)[None, :], np.inf, times)
    placed = np.flatnonzero(np.isfinite(times).any(axis=1)) if times.size else np.empty(0, int)
    if not placed.size:
        ends = max((max(pool) for pool in free), default=0.0)
        nowhere, never = (NOWHERE,) * len(times), (math.nan,) * len(times)
        return GangPlan(nowhere, never, tuple(() for _ in counts), ends, ends)
    search = _Search(times, list(sizes), free, lots or fixed_lots(), order)
    if seconds is not None and clock is not None:
        until = clock() + seconds
        search.run(lambda _: 1 - (until - clock()) / max(seconds, 1e-9))
    else:
        most = max(_ROUNDS if rounds is None else rounds, 1e-9)
        search.run(lambda step: step / most)
    return search.plan()


def _free(ready: Sequence[Sequence[float]] | None, counts: Sequence[int]) -> list[list[float]]:
    if ready is None:
        return [[0.0] * count for count in counts]
    if [len(pool) for pool in ready] != list(counts):
        raise InvalidValue("ready", ready, f"a time for each device of pools of {list(counts)}")
    return [sorted(check_row(f"ready[{at}]", pool).tolist()) for at, pool in enumerate(ready)]


def _checked(
    order: Sequence[Sequence[int]], times: NDArray[np.float64], placed: NDArray[np.int64]
) -> list[list[int]]:
    named = [job for jobs in order for job in jobs]
    if len(order) != times.shape[1] or sorted(named) != placed.tolist():
        raise InvalidValue(
            "order", order, "each job that fits somewhere once, a list for each pool"
        )
    for pool, jobs in enumerate(order):
        for job in jobs:
            if not math.isfinite(times[job, pool]):
                raise InvalidValue(f"order[{pool}]", job, "a job that fits there")
    return [list(jobs) for jobs in order]


class _Search:
    """Simulated annealing over the order of the jobs in each pool.

    What it lowers is the time by which devices end after a target between the bound and the best
    makespan found, summed over the devices: unlike the makespan, that falls with each small gain.
    """

    def __init__(
        self,
        times: NDArray[np.float64],
        sizes: list[int],
        free: list[list[float]],
        lots: Lots,
        order: Sequence[Sequence[int]] | None,
    ) -> None:
        self.times, self.sizes, self.free = times.tolist(), sizes, free
        self.count, self.lots = len(times), lots
        self.drawn: list[float] = []
        placed = np.flatnonzero(np.isfinite(times).any(axis=1))
        areas = times[placed] * np.array(sizes)[placed, None] / [len(pool) for pool in free]
        begun = np.array([sum(pool) / len(pool) for pool in free])
        self.order = (
            self._constructed(areas, begun, placed)
            if order is None
            else _checked(order, times, placed)
        )
        self.best = [list(jobs) for jobs in self.order]
        ends = [self.ends_of(pool, jobs)[-1] for pool, jobs in enumerate(self.order)]
        self.makespan = max(ends)
        longest = max(min(self.times[job]) for job in placed.tolist())
        relaxed = relax(areas, begun, max(self.makespan, 1e-300) * (1 + _NEAR))
        self.bound = max(relaxed.bound, longest, *(pool[-1] for pool in free))
        self.late: list[float] = []
        self._aim()

    def _constructed(
        self, areas: NDArray[np.float64], begun: NDArray[np.float64], placed: NDArray[np.int64]
    ) -> list[list[int]]:
        """Pools by the area of the jobs, and in each the wide and the long ones first."""
        places = assign(areas, ready=begun, lots=self.lots, solver=False).places
        order = [list[int]() for _ in self.free]
        for job, pool in zip(placed.tolist(), places.tolist(), strict=True):
            order[int(pool)].append(job)
        for pool, jobs in enumerate(order):
            jobs.sort(key=lambda job, at=pool: (-self.sizes[job], -self.times[job][at], job))
        return order

    def ends_of(self, pool: int, jobs: list[int], starts: list[float] | None = None) -> list[float]:
        """When each device ends, in order; each job begins as soon as enough devices are free."""
        free = list(self.free[pool])
        times, sizes = self.times, self.sizes
        for job in jobs:
            size = sizes[job]
            start = free[size - 1]
            # Those that came free last: who has been free for long can still take a smaller job.
            upto = bisect_right(free, start)
            del free[upto - size : upto]
            end = start + times[job][pool]
            at = bisect_right(free, end)
            free[at:at] = [end] * size
            if starts is not None:
                starts[job] = start
        return free

    def run(self, part: Callable[[int], float]) -> None:
        """Take steps until ``part``, of the budget used after so many steps, is 1."""
        step = cycle = 0
        first = [list(jobs) for jobs in self.order]
        while self.makespan > self.bound * (1 + _NEAR) and (used := part(step)) < 1:
            step += 1
            if int(used * _CYCLES) > cycle:
                cycle = int(used * _CYCLES)
                self.order = [list(jobs) for jobs in first]
                self._aim()
            changed = self._step()
            ends = {pool: self.ends_of(pool, jobs) for pool, jobs in changed.items()}
            late = {pool: self._late(found) for pool, found in ends.items()}
            worse = sum(late[pool] - self.late[pool] for pool in changed)
            heat = self.bound * _HOT * (_COLD / _HOT) ** (used * _CYCLES - cycle)
            if worse > 0 and self._lot() >= math.exp(-worse / heat):
                continue
            for pool, jobs in changed.items():
                self.order[pool], self.late[pool] = jobs, late[pool]
                self.last[pool] = ends[pool][-1]
            if max(self.last) < self.makespan:
                self.makespan = max(self.last)
                self.best = [list(jobs) for jobs in self.order]
                self._aim()

    def plan(self) -> GangPlan:
        """The best one found."""
        pools, starts = [NOWHERE] * self.count, [math.nan] * self.count
        for pool, jobs in enumerate(self.best):
            self.ends_of(pool, jobs, starts)
            for job in jobs:
                pools[job] = pool
        order = tuple(tuple(jobs) for jobs in self.best)
        bound = min(self.bound, self.makespan)
        return GangPlan(tuple(pools), tuple(starts), order, self.makespan, bound)

    def _aim(self) -> None:
        """Set the target anew, below the best makespan."""
        self.target = self.bound + _AIM * (self.makespan - self.bound)
        ends = [self.ends_of(pool, jobs) for pool, jobs in enumerate(self.order)]
        self.last = [found[-1] for found in ends]
        self.late = [self._late(found) for found in ends]

    def _late(self, ends: list[float]) -> float:
        target = self.target
        return sum([end - target for end in ends if end > target])

    def _step(self) -> dict[int, list[int]]:
        """A random change: the new order of each pool that it touches."""
        source = self._draw(len(self.order))
        jobs = list(self.order[source])
        if not jobs:
            return {}
        at = self._draw(len(jobs))
        job = jobs.pop(at)
        target = self._draw(len(self.order))
        if target == source or not self._fits(job, target):
            jobs.insert(self._draw(len(jobs) + 1), job)
            return {source: jobs}
        others = list(self.order[target])
        place = self._draw(len(others) + 1)
        if others and self._lot() < _EXCHANGED:
            place = self._bring_back(job, source, jobs, others)
        others.insert(place if self._draw(2) else self._draw(len(others) + 1), job)
        return {source: jobs, target: others}

    def _bring_back(self, job: int, source: int, jobs: list[int], others: list[int]) -> int:
        """Move one job or as many as fill the gang the other way; from where the last one came."""
        room = self.sizes[job] if self._draw(3) else 1
        place = self._draw(len(others))
        while others and room > 0:
            place = self._draw(len(others))
            if not self._fits(others[place], source):
                break
            back = others.pop(place)
            jobs.insert(self._draw(len(jobs) + 1), back)
            room -= self.sizes[back]
        return place

    def _fits(self, job: int, pool: int) -> bool:
        return math.isfinite(self.times[job][pool])

    def _lot(self) -> float:
        if not self.drawn:
            self.drawn = self.lots(_DRAWN).tolist()
        return self.drawn.pop()

    def _draw(self, count: int) -> int:
        return int(self._lot() * count)
