"""Two unlike real devices on one kernel: how near to their joint speed each way of sharing comes.

llvmpipe and SwiftShader, each on a core of its own with one thread, compute the same Mandelbrot
tiles: alone, by pulling (ours), by an equal split, with joblib and with Ray's ActorPool.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from results import Result, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import balance_workers as workers
import vulkan_drivers
from balance import statistics
from view import View

from exo.gpu import GPUExecutor, __version__
from exo.gpu.clustering import WorkloadDistributor
from exo.gpu.nodes.local import LocalNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balance import Record
    from kernel import Tile

BALANCE_TARGET = 1.05
EFFICIENCY_TARGET = 0.90
# Of peers that pull as well: slower than them by no more than two runs differ.
NOT_SLOWER = 0.95

Run = tuple[list["Record"], float]
"""Every tile's record, and the Unix time at which the first one could begin."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of everything (%(default)s)")
    parser.add_argument("--tiles", type=int, default=400, help="at least so many (%(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="of the square (%(default)s)")
    parser.add_argument("--limit", type=int, default=2000, help="iterations (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    peers = {name: peer_version(name) for name in ("joblib", "ray")}
    tiles = View.in_tiles(options.size, options.size, options.tiles, options.limit).tiles()
    random.Random(0).shuffle(tiles)
    with ExitStack() as stack:
        ways = contenders(stack, places())
        rounds = [one_round(ways, tiles) for _ in range(options.runs)]
    print(describe(rounds))
    return report("balance", rows(rounds, peers), as_json=options.json)


def places() -> tuple[workers.Place, ...]:
    """The two drivers, each with a core; a machine without them measures nothing."""
    found = {"llvmpipe": vulkan_drivers.llvmpipe(), "SwiftShader": vulkan_drivers.swiftshader()}
    cores = sorted(os.sched_getaffinity(0))
    missing = [name for name, path in found.items() if path is None]
    if missing or len(cores) < len(found):
        lacking = f"no {' and no '.join(missing)}" if missing else f"{len(cores)} core"
        sys.exit(f"the benchmark needs llvmpipe, SwiftShader and two cores; here is {lacking}")
    return tuple(
        workers.Place(name, str(path), core)
        for (name, path), core in zip(found.items(), cores, strict=False)
    )


def peer_version(name: str) -> str:
    """A peer that is missing is an error."""
    try:
        return version(name)
    except PackageNotFoundError:
        sys.exit(f"the peer {name} is missing: pip install {name}")


def contenders(
    stack: ExitStack, both: tuple[workers.Place, ...]
) -> dict[str, Callable[[Sequence[Tile]], Run]]:
    """Ways to share the tiles, by name; opening devices and compiling shaders is not timed."""
    ours = our_executor(stack, both)
    alone = {place.name: our_executor(stack, (place,)) for place in both}
    return {
        **{name: streaming(executor) for name, executor in alone.items()},
        "equal": splitting(ours),
        "pull": streaming(ours),
        "joblib": with_joblib(stack, both),
        "ray": with_ray(stack, both),
    }


def our_executor(stack: ExitStack, chosen: tuple[workers.Place, ...]) -> GPUExecutor:
    """Workers on these places alone, with leases of their own."""
    listed = os.pathsep.join(place.manifest for place in chosen)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="exo-"))
    own = dict.fromkeys(workers.LISTS, listed) | workers.ONE_THREAD | {"EXO_GPU_STATE": folder}
    node = stack.enter_context(LocalNode(os.environ | own))
    executor = GPUExecutor(
        runtime="vulkan", slots=1, node=node, initializer=workers.prepare, initargs=(chosen,)
    )
    stack.enter_context(executor).start()
    return executor


def streaming(executor: GPUExecutor) -> Callable[..., Run]:
    def run(tiles: Sequence[Tile]) -> Run:
        started_at = time.time()
        return [done.result for done in executor.stream(workers.render, tiles)], started_at

    return run


def splitting(executor: GPUExecutor) -> Callable[..., Run]:
    def run(tiles: Sequence[Tile]) -> Run:
        devices = [device.device_id for device in executor.devices]
        started_at = time.time()
        halves = WorkloadDistributor().distribute_uniform(devices, list(tiles))
        done = executor.map_distribution(workers.render, halves)
        return [one.result for one in done], started_at

    return run


def with_joblib(stack: ExitStack, both: tuple[workers.Place, ...]) -> Callable[..., Run]:
    from joblib import Parallel, delayed

    pool = stack.enter_context(Parallel(n_jobs=len(both), return_as="generator_unordered"))
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    claims = [delayed(workers.claim)(both, folder) for _ in both]
    assert {*pool(claims)} == {place.name for place in both}

    def run(tiles: Sequence[Tile]) -> Run:
        started_at = time.time()
        return list(pool(delayed(workers.render)(tile) for tile in tiles)), started_at

    return run


def with_ray(stack: ExitStack, both: tuple[workers.Place, ...]) -> Callable[..., Run]:
    import ray
    from ray.util import ActorPool

    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ray.init(
        address="local",
        num_cpus=len(both),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    stack.callback(ray.shutdown)
    kind = ray.remote(workers.actor_class())
    actors = [kind.remote(place) for place in both]
    pool = ActorPool(actors)

    def run(tiles: Sequence[Tile]) -> Run:
        started_at = time.time()
        records = pool.map_unordered(lambda actor, tile: actor.render.remote(tile), tiles)
        return list(records), started_at

    run(workers.warm_up_tiles(2 * len(both)))
    return run


def one_round(
    ways: dict[str, Callable[[Sequence[Tile]], Run]], tiles: Sequence[Tile]
) -> dict[str, dict[str, float]]:
    """Every way once, one after the other; by way: seconds, iterations, balance, efficiency."""
    measured: dict[str, dict[str, float]] = {}
    for name, run in ways.items():
        records, started_at = run(tiles)
        slots = dict.fromkeys({record.device_id for record in records}, 1)
        figures = statistics(records, slots, started_at)
        measured[name] = {
            "seconds": figures.makespan_seconds,
            "iterations": figures.iterations,
            "balance": figures.balance,
        }
    alone = [one for name, one in measured.items() if name in {"llvmpipe", "SwiftShader"}]
    joint = sum(one["iterations"] / one["seconds"] for one in alone)
    for one in measured.values():
        one["efficiency"] = one["iterations"] / joint / one["seconds"]
    return measured


def describe(rounds: Sequence[dict[str, dict[str, float]]]) -> str:
    lines = ["medians: seconds, balance, efficiency"]
    for name in rounds[0]:
        seconds, balance, efficiency = (
            median(one[name][what] for one in rounds)
            for what in ("seconds", "balance", "efficiency")
        )
        lines.append(f"  {name:<12} {seconds:7.2f} s {balance:7.3f} {efficiency:7.3f}")
    return "\n".join(lines)


def rows(rounds: Sequence[dict[str, dict[str, float]]], peers: dict[str, str]) -> list[Result]:
    def middle(way: str, what: str) -> float:
        return median(one[way][what] for one in rounds)

    def against(way: str) -> float:
        return median(one[way]["seconds"] / one["pull"]["seconds"] for one in rounds)

    split = {"peer_name": "equal split of exo-gpu", "peer_version": __version__}
    count = len(rounds)
    balances = middle("pull", "balance"), middle("equal", "balance")
    efficiencies = middle("pull", "efficiency"), middle("equal", "efficiency")
    spans = {way: (middle("pull", "seconds"), middle(way, "seconds")) for way in rounds[0]}
    return [
        Result("balance", *balances, **split, value=balances[0], target=BALANCE_TARGET,
               better="lower", n=count),
        Result("efficiency", *efficiencies, **split, value=efficiencies[0],
               target=EFFICIENCY_TARGET, better="higher", n=count),
        Result("seconds, equal split / pull", *spans["equal"], **split, value=against("equal"),
               target=1.0, better="higher", n=count),
        Result("seconds, joblib / pull", *spans["joblib"], "joblib", peers["joblib"],
               value=against("joblib"), target=NOT_SLOWER, better="higher", n=count),
        Result("seconds, ActorPool / pull", *spans["ray"], "Ray's ActorPool", peers["ray"],
               value=against("ray"), target=NOT_SLOWER, better="higher", n=count),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
