"""How fast the device table takes samples, how small it keeps them, how fast it adds them up."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import subprocess
import sys
import textwrap
import time
from collections import deque
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from results import Result, report

from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DEVICES = 10_000
HISTORY = 100
PEER = "dict of deques of objects"

# What NVML says of a card, in its own grain: whole percents and degrees, mW, mJ, pages of 2 MiB.
READINGS: dict[str, Callable[[Any, int], Any]] = {
    "memory_used_bytes": lambda chance, count: chance.integers(0, 40_000, count) * 2.0**21,
    "memory_total_bytes": lambda chance, count: chance.integers(40_000, 40_001, count) * 2.0**21,
    "compute_utilization_percent": lambda chance, count: chance.integers(0, 101, count) * 1.0,
    "power_watts": lambda chance, count: chance.integers(60_000, 700_000, count) / 1000,
    "temperature_celsius": lambda chance, count: chance.integers(30, 90, count) * 1.0,
    "clock_rate_mhz": lambda chance, count: chance.integers(210, 1981, count) * 1.0,
    "memory_utilization_percent": lambda chance, count: chance.integers(0, 101, count) * 1.0,
    "memory_clock_mhz": lambda chance, count: chance.integers(2619, 2620, count) * 1.0,
    "power_limit_watts": lambda chance, count: chance.integers(700, 701, count) * 1.0,
    "energy_joules": lambda chance, count: chance.integers(0, 2**40, count) / 1000,
}

# Started alone, so that what it occupies is what was kept; prints resident bytes before and after.
KEEP = textwrap.dedent(
    """
    import json, resource, sys
    sys.path[:0] = [sys.argv[1]]
    import psutil
    import telemetry_table as bench
    what, devices, history = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    bench.keep(what, 10, 2)
    before = psutil.Process().memory_info().rss
    kept = bench.keep(what, devices, history)
    after = psutil.Process().memory_info().rss
    told = getattr(kept, "memory_bytes", 0)
    print(json.dumps({"resident": after - before, "told": told}))
    """
)


class PlainCollector:
    """What a program would write first: the samples themselves, in a deque for each device."""

    def __init__(self, history: int = HISTORY) -> None:
        self._history: dict[str, deque[GPUMetrics]] = {}
        self._length = history

    async def record_metrics(self, sample: GPUMetrics) -> None:
        self.observe(sample)

    def observe(self, sample: GPUMetrics) -> None:
        kept = self._history.get(sample.device_id)
        if kept is None:
            kept = self._history[sample.device_id] = deque(maxlen=self._length)
        kept.append(sample)

    def aggregate(self) -> dict[str, float | None]:
        newest = [kept[-1] for kept in self._history.values()]
        return {
            "total": sum(one.memory_total_bytes for one in newest if one.memory_total_bytes),
            "used": sum(one.memory_used_bytes for one in newest if one.memory_used_bytes),
            "free": sum(one.memory_free_bytes for one in newest if one.memory_free_bytes),
            "utilization": _mean(one.compute_utilization_percent for one in newest),
            "temperature": _mean(one.temperature_celsius for one in newest),
            "hottest": max(one.temperature_celsius or 0 for one in newest),
            "power": sum(one.power_watts for one in newest if one.power_watts),
        }


def results(quick: bool = False) -> list[Result]:
    """The four figures; ``quick`` is for trying the script, not for a result."""
    runs = 2 if quick else 7
    devices = 200 if quick else DEVICES
    return [
        one_by_one(runs, 2_000 if quick else 60_000),
        by_the_batch(runs, devices),
        kept_small(devices, 200 if quick else 2_000),
        added_up(runs, devices),
    ]


def one_by_one(runs: int, count: int) -> Result:
    """Samples a second through ``await record_metrics``, the samples being there already."""
    samples = samples_of(min(count, 1000), -(-count // 1000))[:count]

    async def rate(collector: TelemetryCollector | PlainCollector) -> float:
        started = time.perf_counter()
        for sample in samples:
            await collector.record_metrics(sample)
        return len(samples) / (time.perf_counter() - started)

    ours = [asyncio.run(rate(TelemetryCollector())) for _ in range(runs)]
    peer = [asyncio.run(rate(PlainCollector())) for _ in range(runs)]
    return _result("record_metrics, samples/s", ours, peer, 300_000, "higher")


def by_the_batch(runs: int, devices: int) -> Result:
    """Readings a second through ``record_batch`` by device id, ten readings a sample."""
    ids = ids_of(devices)
    batches = [columns_of(devices, step) for step in range(10)]
    collector = TelemetryCollector()
    number = 0

    def ours() -> float:
        nonlocal number
        started = time.perf_counter()
        for columns in batches:
            number += 1
            collector.record_batch(ids, [float(number)] * devices, columns)
        return devices * len(READINGS) * len(batches) / (time.perf_counter() - started)

    def theirs() -> float:
        plain = PlainCollector()
        lines = [{name: values.tolist() for name, values in batches[0].items()}]
        started = time.perf_counter()
        for sample in _made(ids, 1.0, lines[0]):
            plain.observe(sample)
        return devices * len(READINGS) / (time.perf_counter() - started)

    ours()
    rates = [(ours(), theirs()) for _ in range(runs)]
    mine, peers = zip(*rates, strict=True)
    return _result("record_batch, readings/s", mine, peers, 5_000_000, "higher")


def kept_small(devices: int, peer_devices: int) -> Result:
    """Resident bytes of full histories, each in a process of its own; the peer's scaled up."""
    ours = _kept("columns", devices)
    peer = _kept("plain", peer_devices)["resident"] * devices / peer_devices
    most = max(ours["resident"], ours["told"])  # what it says counts where it says more
    return _result(f"{devices} x {HISTORY} samples, MB", [most / 1e6], [peer / 1e6], 100, "lower")


def added_up(runs: int, devices: int) -> Result:
    """Microseconds of an aggregate over the whole cluster, after a batch that changed it all."""
    collector, plain = TelemetryCollector(), PlainCollector()
    ids = ids_of(devices)
    for sample in samples_of(devices, 1):
        plain.observe(sample)
    ours, peer = [], []
    for step in range(10 * runs):
        collector.record_batch(ids, [float(step)] * devices, columns_of(devices, step % 3))
        started = time.perf_counter()
        collector.aggregate()
        ours.append((time.perf_counter() - started) * 1e6)
        if step < runs:
            started = time.perf_counter()
            plain.aggregate()
            peer.append((time.perf_counter() - started) * 1e6)
    return _result(f"aggregate of {devices}, us", ours, peer, 200, "lower")


def keep(what: str, devices: int, history: int) -> TelemetryCollector | PlainCollector:
    """A collector with full histories; run in a process of its own."""
    ids = ids_of(devices)
    if what == "plain":
        plain = PlainCollector(history)
        for step in range(history):
            lines = {name: v.tolist() for name, v in columns_of(devices, step).items()}
            for sample in _made(ids, 1.7e9 + step, lines):
                plain.observe(sample)
        return plain
    collector = TelemetryCollector(history)
    for step in range(history):
        collector.record_batch(ids, [1.7e9 + step] * devices, columns_of(devices, step))
    gc.collect()
    return collector


def ids_of(count: int) -> list[str]:
    return [f"rig{number // 8}/cuda:{number % 8}" for number in range(count)]


def columns_of(count: int, seed: int) -> dict[str, Any]:
    import numpy as np

    chance = np.random.default_rng(seed)
    return {name: draw(chance, count) for name, draw in READINGS.items()}


def samples_of(devices: int, times: int) -> list[GPUMetrics]:
    ids = ids_of(devices)
    found: list[GPUMetrics] = []
    for step in range(times):
        lines = {name: values.tolist() for name, values in columns_of(devices, step).items()}
        found.extend(_made(ids, float(step), lines))
    return found


def _made(
    ids: Sequence[str], timestamp: float, lines: Mapping[str, list[float]]
) -> list[GPUMetrics]:
    whole = ("memory_used_bytes", "memory_total_bytes")
    typed = {n: [int(v) for v in values] if n in whole else values for n, values in lines.items()}
    rows = zip(*typed.values(), strict=True)
    return [
        GPUMetrics(device_id, timestamp, **dict(zip(typed, row, strict=True)))
        for device_id, row in zip(ids, rows, strict=True)
    ]


def _kept(what: str, devices: int) -> dict[str, int]:
    folder = __file__.rpartition("/")[0] or "."
    command = [sys.executable, "-c", KEEP, folder, what, str(devices), str(HISTORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _result(
    metric: str, ours: Sequence[float], peer: Sequence[float], target: float, better: str
) -> Result:
    value = median(ours)
    version = f"(CPython {platform.python_version()})"
    return Result(metric, value, median(peer), PEER, version, value, target, better, len(ours))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, only to try the script")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    return report("telemetry_table", results(options.quick), as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
