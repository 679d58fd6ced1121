"""How many empty tasks a second, how fast large arrays travel, how soon a first result comes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from dispatch_machine import SLOTS, peer_version, start_ray, two_cards
from results import Result

from exo import gpu

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = platform.python_version()
ARRAY_BYTES = 100_000_000

# In a fresh interpreter, from its first statement to the result.
COLD = """
import time
began = time.perf_counter()
import operator
if __name__ == "__main__":
    {imports}
    with {pool} as pool:
        assert pool.submit(operator.add, 1, 2).result() == 3
        print(time.perf_counter() - began)
"""
OURS = {"imports": "import exo.gpu as gpu", "pool": "gpu.GPUExecutor(devices=['cpu:0'], slots=1)"}
SPAWNED = {
    "imports": "import multiprocessing; from concurrent.futures import ProcessPoolExecutor",
    "pool": "ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))",
}


def rate(count: int, run: Callable[[], Any]) -> float:
    """Per second."""
    began = time.perf_counter()
    run()
    return count / (time.perf_counter() - began)


def medians(runs: int, ways: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Of each way, the runs interleaved."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            figures[name].append(way())
    return {name: median(values) for name, values in figures.items()}


def tasks(*, quick: bool) -> list[Result]:
    with two_cards():
        return measured_tasks(quick=quick)


def measured_tasks(*, quick: bool) -> list[Result]:
    """Empty tasks through every pool, on two workers each, all warm."""
    import ray
    from joblib import Parallel, delayed

    runs, many, few = (1, 2000, 200) if quick else (5, 300_000, 3000)
    start_ray()
    nothing = ray.remote(abs_of)
    pools = (gpu.GPUExecutor(), ProcessPoolExecutor(SLOTS), Parallel(n_jobs=SLOTS))
    with pools[0] as ours, pools[1] as pool, pools[2] as jobs:
        ways = {
            "map": lambda: rate(many, lambda: list(ours.map(abs, range(many)))),
            "joblib": lambda: rate(many, lambda: jobs(delayed(abs)(n) for n in range(many))),
            "pool map": lambda: rate(few, lambda: list(pool.map(abs, range(few)))),
            "ray": lambda: rate(few, lambda: ray.get([nothing.remote(n) for n in range(few)])),
            "submit": lambda: rate(few, lambda: results(ours, few)),
            "pool submit": lambda: rate(few, lambda: results(pool, few)),
        }
        for way in ways.values():  # the first warms up
            way()
        found = medians(runs, ways)
    ray.shutdown()

    def row(metric: str, ours: str, peer: str, named: tuple[str, str], target: float) -> Result:
        name, number = named
        value = found[ours] / found[peer]
        return Result(metric, found[ours], found[peer], name, number, value, target, "higher", runs)

    pool_name = "ProcessPoolExecutor"
    return [
        row("empty tasks by map, a second", "map", "joblib", ("joblib", peer_version("joblib")), 1),
        row("map, chunksize 1 beside", "map", "pool map", (f"{pool_name}.map", PYTHON), 10),
        row("map, Ray tasks beside", "map", "ray", ("ray", peer_version("ray")), 100),
        row("empty tasks by submit, a second", "submit", "pool submit", (pool_name, PYTHON), 1),
    ]


def abs_of(number: int) -> int:
    return abs(number)


def results(pool: Any, count: int) -> list[int]:
    futures = [pool.submit(abs, number) for number in range(count)]
    return [future.result() for future in futures]


def arrays(*, quick: bool) -> list[Result]:
    """Arrays of 100 MB there and back, one added: GB/s (10**9 bytes), each way counted."""
    from joblib import Parallel, delayed

    runs, count, size = (1, 2, ARRAY_BYTES // 50) if quick else (5, 4, ARRAY_BYTES)
    items = [np.full(size // 8, number, dtype=float) for number in range(count)]
    moved = 2 * size * count / 1e9
    with two_cards(), gpu.GPUExecutor() as ours, Parallel(n_jobs=SLOTS) as jobs:

        def by_us() -> float:
            return rate(1, lambda: checked(list(ours.map(add_one, items)))) * moved

        def by_joblib() -> float:
            return rate(1, lambda: checked(jobs(delayed(add_one)(one) for one in items))) * moved

        by_us(), by_joblib()
        found = medians(runs, {"ours": by_us, "joblib": by_joblib})
    value = found["ours"] / found["joblib"]
    return [
        Result(
            f"arrays of {size / 1e6:g} MB in and out, GB/s",
            found["ours"],
            found["joblib"],
            "joblib",
            peer_version("joblib"),
            value,
            0.8,
            "higher",
            runs,
        )
    ]


def add_one(array: np.ndarray) -> np.ndarray:
    return np.add(array, 1)


def checked(arrays: list[np.ndarray]) -> None:
    assert [array[0] for array in arrays] == [number + 1 for number in range(len(arrays))]


def first_result(*, quick: bool) -> list[Result]:
    """Seconds to the first result of a cold pool; the registry of devices is warm."""
    runs = 1 if quick else 9

    # Both are measured with their byte code written, as an installed package has it.
    folder = tempfile.TemporaryDirectory()
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": folder.name}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def cold(words: dict[str, str]) -> float:
        script = Path(folder.name, "cold.py")
        script.write_text(COLD.format(**words))
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=True, env=environ
        )
        return float(done.stdout)

    cold(OURS), cold(SPAWNED)
    found = medians(runs, {"ours": lambda: cold(OURS), "pool": lambda: cold(SPAWNED)})
    folder.cleanup()
    value = found["ours"] / found["pool"]
    name = "ProcessPoolExecutor, spawn"
    return [
        Result(
            "first result when cold, s",
            found["ours"],
            found["pool"],
            name,
            PYTHON,
            value,
            1.2,
            "lower",
            runs,
        )
    ]
