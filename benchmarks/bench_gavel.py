"""Gavel's physical trace on 8 V100, 16 P100 and 24 K80 without preemption, and its table foretold.

The bound is that of the linear program in which each kind of GPU is one machine. With a part of the
table hidden the plan is made of what is foretold, the jobs take what they really take, and what
ends is learned from; where that was a surprise, the jobs that have not begun are planned anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # one core; read when NumPy is loaded

from gavel_prediction import hide, learned, prediction_study  # noqa: E402
from gavel_replay import replay  # noqa: E402
from gavel_table import SOURCE, THROUGHPUTS, TRACE, GavelJob, read_table, read_trace  # noqa: E402
from results import Result, parsed_with_data, report  # noqa: E402

from exo.gpu.scheduling.gang_assignment import assign_gangs  # noqa: E402

if TYPE_CHECKING:
    from gavel_table import Table

    from exo.gpu.scheduling.prediction import SpeedPredictor

CLUSTER = {"v100": 8, "p100": 16, "k80": 24}
HOUR_SECONDS = 3600.0
HIDDEN = 0.1
MAKESPAN_TARGET, HIDDEN_TARGET = 1.06, 1.12


def main() -> int:
    options = arguments()
    gpus = tuple(CLUSTER)
    table = read_table(options.data / THROUGHPUTS, gpus)
    jobs = read_trace(options.data / TRACE)
    for job in jobs:
        if not any(table.get((job.kind, gpu)) for gpu in gpus):
            sys.exit(f"{job.kind} fits on no GPU of {', '.join(gpus)}")
    hours = [[hours_of(job, table.get((job.kind, gpu), 0.0)) for gpu in gpus] for job in jobs]
    results = planned(jobs, hours, options)
    results += hidden(jobs, hours, table, options)
    results += prediction_study(table, options.seeds)
    return report("gavel", results, as_json=options.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400_000, help="of the search (%(default)s)")
    parser.add_argument("--replans", type=int, default=20_000, help="rounds of each (%(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="of what is hidden (%(default)s)")
    parser.add_argument("--solution", type=Path, help="write pool and start of each job here")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parsed_with_data(parser, "gavel", SOURCE)


def hours_of(job: GavelJob, speed: float) -> float:
    """Hours of a job at so many steps a second; infinite where it does not fit."""
    return job.steps / speed / HOUR_SECONDS if speed > 0 else math.inf


def planned(
    jobs: list[GavelJob], hours: list[list[float]], options: argparse.Namespace
) -> list[Result]:
    """All is known: our plan beside the greedy ones."""
    gangs, counts = [job.gang for job in jobs], list(CLUSTER.values())
    began = time.perf_counter()
    plan = assign_gangs(hours, gangs, counts, rounds=options.rounds)
    seconds = time.perf_counter() - began
    makespan = counted_anew(plan.pools, plan.starts, hours, gangs)
    longest = sorted(range(len(jobs)), key=lambda job: -min(hours[job]))
    greedy = {
        "greedy, longest first": earliest_completion(longest, hours, gangs, counts),
        "greedy, trace order": earliest_completion(range(len(jobs)), hours, gangs, counts),
    }
    print(f"  LP bound {plan.bound:.2f} h; ours {makespan:.2f} h after {seconds:.1f} s")
    if options.solution:
        kinds = list(CLUSTER)
        rows = [[kinds[pool], start] for pool, start in zip(plan.pools, plan.starts, strict=True)]
        options.solution.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    value = makespan / plan.bound
    return [
        Result(
            f"makespan, h ({name})", makespan, peer, name, "", value, MAKESPAN_TARGET, "lower", 1
        )
        for name, peer in greedy.items()
    ]


def hidden(
    jobs: list[GavelJob], hours: list[list[float]], table: Table, options: argparse.Namespace
) -> list[Result]:
    """A tenth of the table is hidden and foretold; the bound is that of the true table."""
    gangs, counts = [job.gang for job in jobs], list(CLUSTER.values())
    bound = assign_gangs(hours, gangs, counts, rounds=0).bound
    ratios: list[float] = []
    for seed in range(options.seeds):
        kept_back = hide(table, HIDDEN, seed)
        book = Book(jobs, hours, learned(table, kept_back), kept_back)
        rounds = options.rounds // 4, options.replans
        ratios.append(replay(hours, gangs, counts, book.tell, book.learn, rounds=rounds) / bound)
        print(f"  a tenth hidden, seed {seed}: {ratios[-1]:.3f} x the bound")
    mean, name = fmean(ratios), "the LP bound of the true table"
    return [
        Result(
            "a tenth hidden: x bound",
            mean,
            1.0,
            name,
            "",
            mean,
            HIDDEN_TARGET,
            "lower",
            len(ratios),
        ),
        Result(
            "a tenth hidden: worst seed",
            max(ratios),
            1.0,
            name,
            "",
            max(ratios),
            HIDDEN_TARGET,
            "lower",
            len(ratios),
        ),
    ]


class Book:
    """Hours by what is known so far: what was measured, and forecasts of the rest."""

    def __init__(
        self,
        jobs: list[GavelJob],
        hours: list[list[float]],
        predictor: SpeedPredictor,
        kept_back: list[tuple[str, str]],
    ) -> None:
        self.jobs, self.hours, self.predictor = jobs, hours, predictor
        self.unknown = set(kept_back)

    def tell(self) -> list[list[float]]:
        """Hours of each job in each pool; what does not fit is known from its memory."""
        return [
            [self.hours_told(at, pool, gpu) for pool, gpu in enumerate(CLUSTER)]
            for at in range(len(self.jobs))
        ]

    def hours_told(self, at: int, pool: int, gpu: str) -> float:
        """As measured; else the late end of the range.

        A job that cannot be moved once it has begun costs more where it is slower than foretold
        than it gains where it is faster.
        """
        job, true = self.jobs[at], self.hours[at][pool]
        if (job.kind, gpu) not in self.unknown or true == math.inf:
            return true
        forecast = self.predictor.predict(job.kind, gpu)
        return math.inf if forecast is None else hours_of(job, 1 / forecast.high_seconds)

    def learn(self, at: int, pool: int) -> None:
        """A job has ended there."""
        job, gpu = self.jobs[at], list(CLUSTER)[pool]
        self.unknown.discard((job.kind, gpu))
        self.predictor.learn(job.kind, gpu, self.hours[at][pool] * HOUR_SECONDS / job.steps)


def counted_anew(pools: Any, starts: Any, hours: list[list[float]], gangs: list[int]) -> float:
    """The makespan of a plan, from where and when alone; exits where a pool is over-committed."""
    ends = [start + hours[at][pools[at]] for at, start in enumerate(starts)]
    for pool, count in enumerate(CLUSTER.values()):
        inside = [at for at in range(len(ends)) if pools[at] == pool]
        for at in inside:
            busy = sum(gangs[i] for i in inside if starts[i] <= starts[at] < ends[i])
            if busy > count:
                sys.exit(f"pool {pool} is over-committed at {starts[at]:.3f} h")
    return max(ends)


def earliest_completion(
    order: Any, hours: list[list[float]], gangs: list[int], counts: list[int]
) -> float:
    """Each job goes where it ends first, in the order given."""
    free = [[0.0] * count for count in counts]
    for job in order:
        ends = {pool: free[pool][gangs[job] - 1] + hours[job][pool] for pool in range(len(counts))}
        pool = min(ends, key=lambda one: ends[one])
        free[pool] = sorted([*free[pool][gangs[job] :], *[ends[pool]] * gangs[job]])
    return max(max(pool) for pool in free)


if __name__ == "__main__":
    sys.exit(main())
