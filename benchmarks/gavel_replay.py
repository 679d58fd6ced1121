"""A plan of gangs carried out in virtual time: jobs take what they really take."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from exo.gpu.scheduling.gang_assignment import GangPlan, assign_gangs

# A job that took so much longer or shorter than foretold is a surprise; below it a plan holds.
SURPRISE = 0.05

Matrix = list[list[float]]


def replay(
    true: Matrix,
    gangs: list[int],
    counts: list[int],
    tell: Callable[[], Matrix],
    learn: Callable[[int, int], None],
    *,
    rounds: tuple[int, int],
) -> float:
    """The makespan where ``tell`` foretells all times, and ``learn`` hears of a job that ended.

    ``rounds`` are those of the first plan, and of each one after a surprise.
    """
    told = tell()
    order = by_start(assign_gangs(told, gangs, counts, rounds=rounds[0]))
    free, now = list(counts), 0.0
    running: list[tuple[float, int, int, float]] = []  # end, job, pool, foretold end
    while True:
        for pool, jobs in enumerate(order):
            while jobs and gangs[jobs[0]] <= free[pool]:
                job = jobs.pop(0)
                free[pool] -= gangs[job]
                end, expected = now + true[job][pool], now + told[job][pool]
                heapq.heappush(running, (end, job, pool, expected))
        if not running:
            return now
        now, job, pool, expected = heapq.heappop(running)
        free[pool] += gangs[job]
        learn(job, pool)
        surprised = abs(math.log(true[job][pool] / told[job][pool])) > SURPRISE
        waiting = sorted(job for jobs in order for job in jobs)
        if surprised and waiting:
            told = tell()
            ready = [[0.0] * count for count in free]
            for _, other, place, end in running:
                ready[place] += [max(end - now, 0.0)] * gangs[other]
            place_of = {job: at for at, job in enumerate(waiting)}
            plan = assign_gangs(
                [told[one] for one in waiting],
                [gangs[one] for one in waiting],
                counts,
                ready=ready,
                order=[[place_of[job] for job in jobs] for jobs in order],
                rounds=rounds[1],
            )
            order = [[waiting[at] for at in jobs] for jobs in by_start(plan)]


def by_start(plan: GangPlan) -> list[list[int]]:
    """The jobs of each pool as they begin: small ones pass a gang that waits for enough devices."""
    return [sorted(jobs, key=lambda job: plan.starts[job]) for jobs in plan.order]
