"""A plan of gangs carried out in virtual time: jobs take what they really take."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from exo.gpu.scheduling.gang_assignment import assign_gangs

# A job that took so much longer or shorter than foretold is a surprise; below it a plan holds.
SURPRISE = 0.05

Matrix = list[list[float]]


def replay(
    true: Matrix,
    gangs: list[int],
    counts: list[int],
    tell: Callable[[], Matrix],
    learn: Callable[[int, int], None],
    rounds: tuple[int, int],
) -> float:
    """The makespan where ``tell`` foretells all times, and ``learn`` hears of a job that ended.

    ``rounds`` are those of the first plan, and of each one after a surprise.
    """
    told = tell()
    order = [list(jobs) for jobs in assign_gangs(told, gangs, counts, rounds=rounds[0]).order]
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
            plan = assign_gangs(
                [told[one] for one in waiting],
                [gangs[one] for one in waiting],
                counts,
                ready=ready,
                rounds=rounds[1],
            )
            order = [[waiting[at] for at in jobs] for jobs in plan.order]
