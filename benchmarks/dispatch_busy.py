"""How busy two devices are with items of some length, and how soon a slot goes on after a death."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dispatch_machine import SLOTS, parallel_version, peer_version, start_ray, two_cards
from dispatch_rates import medians
from results import Result

from exo import gpu
from exo.gpu.scheduling.scheduler import PullScheduler
from tests.backends.nvml.fake_nvml import T4, VARIABLE, FakeNvml, build

# Seconds of an item -> how many of them, and how busy both devices must be.
LENGTHS = {0.01: (400, 0.90), 0.1: (80, 0.98), 1.0: (12, 0.995)}
LONG_SECONDS, LONG_ITEMS, LONG_TARGET = 60.0, 40, 0.999

MEMORY_BACK_SECONDS = 0.2
HELD_BYTES = 4 * 2**30


def busy(items: list[float], run: Any) -> float:
    """The part of the time of both devices that the items themselves take."""
    began = time.perf_counter()
    run()
    return sum(items) / SLOTS / (time.perf_counter() - began)


def utilisation(*, quick: bool) -> list[Result]:
    """The same items through us, joblib, Ray's ActorPool and GNU parallel; all but it are warm."""
    import ray
    from joblib import Parallel
    from ray.util import ActorPool

    start_ray()
    pool = ActorPool([ray.remote(Sleeper).remote() for _ in range(SLOTS)])
    rows: list[Result] = []
    turnaround_seconds = 0.0
    with two_cards(), gpu.GPUExecutor() as ours, Parallel(n_jobs=SLOTS) as jobs:
        for seconds, (count, target) in LENGTHS.items():
            if quick and seconds == 1.0:
                continue
            items, runs = [seconds] * (4 if quick else count), 1 if quick else 3
            ways = ways_of(items, ours, jobs, pool)
            for way in ways.values():
                if not rows:
                    way()  # the first warms up
            found = medians(runs, {name: partial(busy, items, way) for name, way in ways.items()})
            turnaround_seconds = seconds * (1 / found["ours"] - 1)
            rows += [
                Result(
                    f"busy with {seconds:g} s items",
                    found["ours"],
                    found[name],
                    name,
                    number,
                    found["ours"],
                    target,
                    "higher",
                    runs,
                )
                for name, number in versions().items()
            ]
    ray.shutdown()
    return [*rows, on_a_virtual_clock(turnaround_seconds)]


def ways_of(items: list[float], ours: Any, jobs: Any, pool: Any) -> dict[str, Any]:
    from joblib import delayed

    return {
        "ours": lambda: list(ours.map(time.sleep, items)),
        "joblib": lambda: jobs(delayed(time.sleep)(one) for one in items),
        "Ray ActorPool": lambda: list(pool.map_unordered(call_sleep, items)),
        "GNU parallel": lambda: shell_sleep(items),
    }


def versions() -> dict[str, str]:
    return {
        "joblib": peer_version("joblib"),
        "Ray ActorPool": peer_version("ray"),
        "GNU parallel": parallel_version(),
    }


class Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def call_sleep(actor: Any, seconds: float) -> Any:
    return actor.sleep.remote(seconds)


def shell_sleep(items: list[float]) -> None:
    lines = "".join(f"{one}\n" for one in items)
    command = ["parallel", f"-j{SLOTS}", "sleep {}"]
    subprocess.run(command, input=lines, text=True, check=True, capture_output=True)


def on_a_virtual_clock(turnaround_seconds: float) -> Result:
    """The real scheduler decides on items of 60 s; each chunk costs what the longest ones did."""
    scheduler = PullScheduler()
    free_at = dict.fromkeys(range(SLOTS), 0.0)
    for slot in free_at:
        scheduler.open_slot(slot)
    left = LONG_ITEMS
    while left:
        slot = min(free_at, key=free_at.__getitem__)
        count = scheduler.take(slot, left).fresh
        seconds = count * LONG_SECONDS
        scheduler.finished(slot, count, seconds)
        free_at[slot] += seconds + max(0.0, turnaround_seconds)
        left -= count
    value = LONG_ITEMS * LONG_SECONDS / SLOTS / max(free_at.values())
    even = 1.0  # an equal split that costs nothing
    return Result(
        "busy with 60 s items, virtual",
        value,
        even,
        "equal split at no cost",
        "",
        value,
        LONG_TARGET,
        "higher",
        1,
    )


def turnaround(*, quick: bool) -> list[Result]:
    """From one process's end to its successor's first item, where memory comes back after 0.2 s."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder)
        FakeNvml(library, folder / "nvml.txt").write(T4)
        environ = {
            **os.environ,
            VARIABLE: str(folder / "nvml.txt"),
            "LD_LIBRARY_PATH": str(folder),
            "EXO_GPU_REGISTRY": str(folder / "registry.json"),
            "EXO_GPU_STATE": str(folder / "state"),
        }
        done = subprocess.run(
            [sys.executable, __file__, str(2 if quick else 12)],
            env=environ,
            stdout=subprocess.PIPE,
            check=True,
        )
    gaps = json.loads(done.stdout)
    value = median(gaps)
    return [
        Result(
            "slot turnaround, memory back after 0.2 s",
            value,
            MEMORY_BACK_SECONDS,
            "the memory's own return",
            "",
            value,
            0.25,
            "lower",
            len(gaps),
        )
    ]


def gaps_between(count: int) -> list[float]:
    """Seconds without an item after each of so many processes; every item has a fresh one."""
    pools = gpu.GPUExecutor(memory="4GiB", slots=1, devices=["cuda:0"], fresh=True)
    seen: list[tuple[int, float]] = []
    exits: dict[int, float] = {}
    watchers: list[threading.Thread] = []
    with pools as executor:
        for pid, started in executor.map(hold_memory, range(count + 1), chunksize=1):
            seen.append((pid, started))
            watchers.append(threading.Thread(target=see_off, args=(pid, exits)))
            watchers[-1].start()
    for watcher in watchers:
        watcher.join()
    return [started - exits[pid] for (pid, _), (_, started) in itertools.pairwise(seen)]


def hold_memory(_: int) -> tuple[int, float]:
    """Take memory, as far as the driver can tell, and go on holding it until the end."""
    started = time.time()
    set_used(HELD_BYTES)
    time.sleep(0.05)
    return os.getpid(), started


def see_off(pid: int, exits: dict[int, float]) -> None:
    while is_alive(pid):
        time.sleep(0.0005)
    exits[pid] = time.time()
    time.sleep(MEMORY_BACK_SECONDS)
    set_used(0)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def set_used(count: int) -> None:
    """What the fake library says is used, from any process."""
    path = Path(os.environ[VARIABLE])
    lines = [one for one in path.read_text().splitlines() if ".memory.used" not in one]
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text("\n".join([*lines, f"0.memory.used={count}", ""]))
    fresh.replace(path)


if __name__ == "__main__":
    print(json.dumps(gaps_between(int(sys.argv[1]))))
