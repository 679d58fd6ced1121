"""How busy two devices are with items of some length, and how soon a slot goes on after a death."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
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


def busy(seconds: float, count: int, run: Any) -> float:
    """The part of the time of both devices that the items themselves take."""
    began = time.perf_counter()
    run()
    return seconds * count / SLOTS / (time.perf_counter() - began)


def utilisation(*, quick: bool) -> list[Result]:
    """The same items through us, joblib, Ray's ActorPool and GNU parallel; all but it are warm."""
    import ray
    from joblib import Parallel, delayed
    from ray.util import ActorPool

    start_ray()
    pool = ActorPool([ray.remote(Sleeper).remote() for _ in range(SLOTS)])
    rows: list[Result] = []
    turnaround_seconds = 0.0
    with two_cards(), gpu.GPUExecutor() as ours, Parallel(n_jobs=SLOTS) as jobs:
        for seconds, (count, target) in LENGTHS.items():
            number, runs = (4, 1) if quick else (count, 3)
            if quick and seconds == 1.0:
                continue
            items = [seconds] * number
            ways = {
                "ours": lambda: list(ours.map(time.sleep, items)),
                "joblib": lambda: jobs(delayed(time.sleep)(one) for one in items),
                "Ray ActorPool": lambda: list(pool.map_unordered(call_sleep, items)),
                "GNU parallel": lambda: shell_sleep(items),
            }
            for name in ("ours", "joblib", "Ray ActorPool"):
                list(ours.map(time.sleep, [0.0] * 4)) if name == "ours" else ways[name]()
            found = medians(
                runs,
                {name: (lambda way=way: busy(seconds, number, way)) for name, way in ways.items()},
            )
            turnaround_seconds = seconds * (1 / found["ours"] - 1)
            versions = {
                "joblib": peer_version("joblib"),
                "Ray ActorPool": peer_version("ray"),
                "GNU parallel": parallel_version(),
            }
            rows += [
                Result(
                    f"busy with {seconds:g} s items",
                    found["ours"],
                    found[name],
                    name,
                    number_,
                    found["ours"],
                    target,
                    "higher",
                    runs,
                )
                for name, number_ in versions.items()
            ]
    ray.shutdown()
    return [*rows, on_a_virtual_clock(turnaround_seconds)]


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
    count = 2 if quick else 12
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nvml = FakeNvml(build(folder), folder / "nvml.txt")
        nvml.write(T4)
        for part in ("state", "registry", "configuration"):
            (folder / part).mkdir()
        os.environ.pop("EXO_GPU_FAKE", None)
        os.environ |= {
            VARIABLE: str(nvml.description),
            "EXO_GPU_NVML_LIBRARY": nvml.library,
            "EXO_GPU_STATE": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "registry"),
            "XDG_CONFIG_HOME": str(folder / "configuration"),
        }
        try:
            gaps = gaps_between(nvml, count)
        finally:
            os.environ.clear()
            os.environ.update(before)
    value = median(gaps)
    return [
        Result(
            "slot turnaround, memory back after 0.2 s, s",
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


def gaps_between(nvml: FakeNvml, count: int) -> list[float]:
    exits: dict[int, float] = {}
    with gpu.GPUExecutor(memory="4GiB", slots=1, devices=["cuda:0"], fresh=True) as executor:
        begun: list[tuple[int, float]] = []
        watchers: list[threading.Thread] = []
        for pid, started in executor.map(hold_memory, range(count + 1), buffersize=1):
            begun.append((pid, started))
            nvml.change("0.memory.used", HELD_BYTES)
            watcher = threading.Thread(target=see_off, args=(pid, exits, nvml))
            watcher.start()
            watchers.append(watcher)
        for watcher in watchers:
            watcher.join()
    pairs = zip(begun, begun[1:], strict=False)
    return [started - exits[pid] for (pid, _), (_, started) in pairs]


def hold_memory(_: int) -> tuple[int, float]:
    return os.getpid(), time.time()


def see_off(pid: int, exits: dict[int, float], nvml: FakeNvml) -> None:
    while Path(f"/proc/{pid}").exists() and "\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.0005)
    exits[pid] = time.time()
    time.sleep(MEMORY_BACK_SECONDS)
    nvml.change("0.memory.used", 0)
