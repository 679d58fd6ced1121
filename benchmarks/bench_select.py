"""Decisions at 8 to 100,000 devices, against a plain Python loop over the same devices.

Before each decision one device changes, and no two questions are alike. The p99 holds our change as
well as the decision; the comparisons with a loop are told for the decision alone and, for large
tables, for both. The peers' change is an assignment, and is never timed.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from results import Result, report
from select_peers import Plain, loop_over_objects, loop_over_rows

from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import DeviceState

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30
P99_MICROSECONDS = {8: 20.0, 64: 30.0, 1000: 100.0}
SCALES = (10_000, 100_000)
BATCH_DEVICES, BATCH_REQUESTS = 10_000, 1000
LABELS = (("big",), ("quiet",), ("big", "quiet"), ())
ROWS, OBJECTS = "plain Python loop over the same rows", "plain Python loop over objects"


def device(number: int, dice: Random) -> tuple[GPUDevice, DeviceSettings, float]:
    """A card of one of four sizes and two runtimes, with labels and a measured speed."""
    card = GPUDevice(
        f"cuda:{number}",
        "card",
        "vendor",
        dice.choice(["cuda", "rocm"]),
        memory_bytes=dice.choice([12, 24, 48, 80]) * GIB,
        hardware_id=f"GPU-{number:08d}",
    )
    return card, DeviceSettings(labels=dice.choice(LABELS)), dice.uniform(1e3, 1e5)


def sampled(card: tuple[GPUDevice, DeviceSettings, float], dice: Random) -> DeviceState:
    """The device with new readings, as far as they matter here."""
    facts, settings, gflops = card
    total = facts.memory_bytes or 0
    sample = GPUMetrics(
        facts.device_id,
        1.0,
        memory_used_bytes=dice.randrange(total),
        memory_total_bytes=total,
        compute_utilization_percent=dice.uniform(0, 100),
        temperature_celsius=dice.uniform(30, 95),
    )
    return DeviceState(
        device=facts,
        sample=sample,
        sample_age_seconds=0.0,
        settings=settings,
        measured_gflops=gflops,
    )


def question(dice: Random, *, memory_only: bool) -> Request:
    """A request unlike the others: always some memory, often some other wishes."""
    memory = dice.randrange(1, 80 * GIB)
    if memory_only:
        return Request(memory_bytes=memory)
    return Request(
        memory_bytes=dice.randrange(1, 40 * GIB),
        runtime=dice.choice([None, None, "cuda", "rocm"]),
        labels=dice.choice([(), (), *LABELS]),
        min_idle_percent=dice.choice([None, dice.uniform(0, 60)]),
        max_temperature_celsius=dice.choice([None, dice.uniform(60, 95)]),
    )


class Table:
    """The same devices three times: as our table, as rows, and as objects."""

    def __init__(self, size: int) -> None:
        self.dice = Random(size)
        self.cards = [device(number, self.dice) for number in range(size)]
        self.objects = [sampled(card, self.dice) for card in self.cards]
        self.rows = [Plain(state) for state in self.objects]
        self.ours = FastSelector(self.objects)

    def decide(
        self, count: int, clock: Callable[[], int], *, memory_only: bool, peers: int
    ) -> dict[str, list[float]]:
        """Microseconds of our changes, our decisions and the peer's, and whether all agreed."""
        times: dict[str, list[float]] = {"change": [], "ours": [], "peer": [], "agreed": []}
        for turn in range(-20, count):  # the first few warm everything up
            asked = question(self.dice, memory_only=memory_only)
            state = self.change()
            begun = clock()
            self.ours.update(state)
            changed = clock()
            choice = self.ours.choose(asked)
            done = clock()
            if turn < 0:
                continue
            times["change"].append((changed - begun) / 1e3)
            times["ours"].append((done - changed) / 1e3)
            if turn < peers:
                begun = clock()
                if memory_only:
                    best = loop_over_objects(self.objects, asked)
                else:
                    best = loop_over_rows(self.rows, asked)
                times["peer"].append((clock() - begun) / 1e3)
                times["agreed"].append(choice.chosen == (() if best is None else (best,)))
        return times

    def change(self) -> DeviceState:
        """A device with new readings; the peers know of it already."""
        place = self.dice.randrange(len(self.cards))
        state = sampled(self.cards[place], self.dice)
        self.objects[place], self.rows[place] = state, Plain(state)
        return state


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def both(times: dict[str, list[float]]) -> list[float]:
    return [change + ours for change, ours in zip(times["change"], times["ours"], strict=True)]


def few(size: int, count: int) -> list[Result]:
    """The slowest of a hundred decisions, and at 8 devices the two loops side by side."""
    table = Table(size)
    # Processor time, since what other programs take of a busy machine is not the decision's.
    slow = table.decide(count, time.thread_time_ns, memory_only=False, peers=count)
    ours, peer = p99(both(slow)), p99(slow["peer"])
    name = f"{size} devices: p99, us"
    rows = [result(name, ROWS, (ours, peer), ours, P99_MICROSECONDS[size], "lower", count)]
    if size == min(P99_MICROSECONDS):
        times = table.decide(count, time.perf_counter_ns, memory_only=False, peers=count)
        pair = (median(times["ours"]), median(times["peer"]))
        name = f"{size} devices: ours / loop, us"
        rows.append(result(name, ROWS, pair, pair[0] / pair[1], 1.5, "lower", count))
    return [*rows, agreement(size, ROWS, slow)]


def many(size: int, count: int) -> tuple[list[Result], float]:
    """How many times faster than the loop, with a memory constraint."""
    peers = max(5, count // 100)
    times = Table(size).decide(count, time.perf_counter_ns, memory_only=True, peers=peers)
    peer, ours, whole = median(times["peer"]), median(times["ours"]), median(both(times))
    name = f"{size} devices: loop / decision, us"
    rows = [result(name, OBJECTS, (ours, peer), peer / ours, 100.0, "higher", peers)]
    name = f"{size} devices: loop / change too, us"
    rows.append(result(name, OBJECTS, (whole, peer), peer / whole, 100.0, "higher", peers))
    return [*rows, agreement(size, OBJECTS, times)], whole


def batch(runs: int) -> Result:
    """Decisions a second of one pass that also says what each took, by processor time."""
    rates: list[float] = []
    dice = Random(1)
    asked = [
        Request(memory_bytes=dice.randrange(1, 24 * GIB), holder="batch")
        for _ in range(BATCH_REQUESTS)
    ]
    for _ in range(runs):
        table = Table(BATCH_DEVICES)
        table.ours.choose(asked[0])
        begun = time.thread_time()
        choices = table.ours.choose_many(asked)
        rates.append(BATCH_REQUESTS / (time.thread_time() - begun))
        assert all(len(choice.taken) == len(choice.chosen) == 1 for choice in choices)
    table = Table(BATCH_DEVICES)
    begun = time.thread_time()
    for request in asked[:20]:
        loop_over_objects(table.objects, request)
    peer = 20 / (time.thread_time() - begun)
    name = f"{BATCH_REQUESTS} over {BATCH_DEVICES}, decisions / s"
    pair = (median(rates), peer)
    return result(name, OBJECTS, pair, pair[0], 20_000.0, "higher", runs)


def agreement(size: int, peer: str, times: dict[str, list[float]]) -> Result:
    """The part of the decisions in which the loop chose the same device."""
    agreed = sum(times["agreed"]) / len(times["agreed"])
    name = f"{size} devices: same answers"
    return result(name, peer, (agreed, 1.0), agreed, 1.0, "higher", len(times["agreed"]))


def result(  # noqa: PLR0917 - the fields of a result, in their order
    metric: str,
    peer: str,
    pair: tuple[float, float],
    value: float,
    target: float,
    better: str,
    n: int,
) -> Result:
    return Result(metric, *pair, peer, platform.python_version(), value, target, better, n)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=5000, help="of each size (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of the batch (%(default)s)")
    parser.add_argument("--largest", type=int, default=max(SCALES), help="size of a table at most")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options: Any = parser.parse_args()
    gc.disable()  # its pauses are the program's around it, not a decision's
    rows: list[Result] = []
    for size in (size for size in P99_MICROSECONDS if size <= options.largest):
        rows += few(size, options.decisions)
    medians: dict[int, float] = {}
    for size in (size for size in SCALES if size <= options.largest):
        found, medians[size] = many(size, options.decisions)
        rows += found
    if len(medians) == len(SCALES):
        small, large = (medians[size] for size in SCALES)
        growth = SCALES[1] / SCALES[0]
        name = "100,000 / 10,000 devices, us"
        pair, count = (large, small), options.decisions
        rows.append(result(name, "ours at 10,000", pair, large / small, growth, "lower", count))
    if options.largest >= BATCH_DEVICES:
        rows.append(batch(options.runs))
    return report("select", rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
