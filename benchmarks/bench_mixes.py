"""Mixes that were made here of the openb pods, and mixes of no pods at all: ours beside FGD.

They are no published workloads: they show whether the policy holds where it was not tuned.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from typing import TYPE_CHECKING

from bench_openb import OURS, SOURCE
from results import Result, parsed_with_data, report

from exo.gpu.scheduling.machines import Demand, Machine
from exo.gpu.simulation.placement import arrivals, gpu_milli_of, place_all
from exo.gpu.simulation.traces.openb import Pod, read_nodes, read_pods

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 2**30
SEEDS = (11, 12)
# How often openb's pods are drawn, beside the list: without GPU, parts of one, whole ones, several.
RESAMPLED = {
    "half the work without GPU": (0.5, 1.0, 1.0, 1.0),
    "twice the work without GPU": (2.0, 1.0, 1.0, 1.0),
    "2.5 x the work without GPU": (2.5, 1.0, 1.0, 1.0),
    "a third of the parts": (1.0, 0.33, 1.4, 1.0),
    "twice the parts": (1.0, 2.0, 0.5, 0.5),
    "4 x the parts": (1.0, 4.0, 0.3, 0.3),
    "5 x the gangs": (1.0, 1.0, 1.0, 5.0),
    "15 x the gangs": (1.0, 1.0, 1.0, 15.0),
}
INVENTED = 14
LARGEST_LIST = 12_000


def resampled(pods: Sequence[Pod], weights: tuple[float, ...], goal_milli: int) -> list[Demand]:
    """Demands of the list until they ask for so much GPU, each class by its weight."""
    chance = random.Random(repr(weights))
    demands = [pod.demand for pod in pods]
    frequency = [
        weights[0 if not one.gpus else 1 if one.is_share else 2 if one.gpus == 1 else 3]
        for one in demands
    ]
    return _until(lambda: chance.choices(demands, frequency, k=256), goal_milli)


def invented(number: int) -> tuple[list[Machine], list[Demand]]:
    """A cluster of up to four kinds of machine, and demands of 4 to 40 kinds."""
    chance = random.Random(f"mix {number}")
    kinds = [
        (chance.choice((1, 2, 4, 8)), chance.choice((8, 12, 24, 48)))
        for _ in range(chance.randint(1, 4))
    ]
    machines = []
    for index in range(300):
        model = chance.randrange(len(kinds))
        gpus, cores = kinds[model]
        machines.append(
            Machine(
                name=f"n{index}",
                cpu_milli=1000 * gpus * cores,
                memory_bytes=6 * GIB * gpus * cores,
                gpus=gpus,
                model=f"M{model}",
            )
        )
    shapes = [_invented_demand(chance) for _ in range(chance.randint(4, 40))]
    frequency = [chance.paretovariate(1) for _ in shapes]
    goal = gpu_milli_of(machines)
    return machines, _until(lambda: chance.choices(shapes, frequency, k=256), goal)


def compare(label: str, machines: Sequence[Machine], demands: Sequence[Demand]) -> Result:
    """GPU allocated in the end, ours less FGD's."""
    pods = [Pod(f"p{number:06}", one) for number, one in enumerate(demands)]
    capacity = gpu_milli_of(machines)
    means = []
    for policy in (OURS, "fgd"):
        runs = [
            place_all(machines, arrivals(pods, capacity, seed), policy, seed, workload=pods)
            for seed in SEEDS
        ]
        means.append(statistics.fmean(100 * run.allocated_milli[-1] / capacity for run in runs))
    ours, peer = means
    return Result(label, ours, peer, "fgd", "run here", ours - peer, 0.0, "higher", len(SEEDS))


def main() -> int:
    """Compare on every mix; 0 when ours is above on all and by half a point on the resampled."""
    options = _options()
    machines = read_nodes(options.data / "openb_node_list_gpu_node.csv")
    pods = read_pods(options.data / "openb_pod_list_multigpu30.csv")
    goal = gpu_milli_of(machines)
    results = [
        compare(label, machines, resampled(pods, weights, goal))
        for label, weights in RESAMPLED.items()
    ]
    for label, rows, target in (
        ("resampled, mean", results, 0.5),
        ("invented, mean", [compare(f"invented {n}", *invented(n)) for n in range(INVENTED)], 0.0),
    ):
        ours, peer = (statistics.fmean(values) for values in _columns(rows))
        results = results if rows is results else [*results, *rows]
        results.append(
            Result(label, ours, peer, "fgd", "run here", ours - peer, target, "higher", len(rows))
        )
    return report("mixes", results, as_json=options.json)


def _columns(rows: Sequence[Result]) -> tuple[list[float], list[float]]:
    return [row.ours for row in rows], [row.peer for row in rows]


def _until(draw, goal_milli: int) -> list[Demand]:  # noqa: ANN001 - a function without arguments
    demands: list[Demand] = []
    total = 0
    while True:
        for one in draw():
            total += one.total_gpu_milli
            demands.append(one)
            if total >= goal_milli or len(demands) == LARGEST_LIST:
                return demands


def _invented_demand(chance: random.Random) -> Demand:
    what = chance.random()
    cores, gib = chance.choice((1, 2, 4, 6, 8, 12)), chance.choice((2, 8, 32))
    if what < 0.15:
        return Demand(cpu_milli=2000 * cores, memory_bytes=gib * GIB)
    gpus, gpu_milli = 1, 1000
    if what < 0.55:
        gpu_milli = 50 * chance.randint(1, 19)
    elif what >= 0.9:
        gpus = chance.choice((2, 4, 8))
    return Demand(
        cpu_milli=1000 * gpus * cores,
        memory_bytes=gpus * gib * GIB,
        gpus=gpus,
        gpu_milli=gpu_milli,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parsed_with_data(parser, "openb", SOURCE)


if __name__ == "__main__":
    sys.exit(main())
