"""How near the bound items of unknown cost end on devices of unknown speed, in virtual time.

The scheduler is the executor's own; the clock, the devices and the cost of handing a chunk over are
simulated. Speeds are 1, 2, 4 and 8, items are lognormal, and nobody is told either. The bound is
max(total / sum of speeds, longest item / fastest speed).
"""

from __future__ import annotations

import argparse
import heapq
import sys
from random import Random
from statistics import fmean, stdev

from results import Result, report

from exo.gpu.scheduling.scheduler import PullScheduler

SPEEDS = (1.0, 2.0, 4.0, 8.0)
ITEMS = 1000
SIGMAS = (0.5, 1.0)
# Handing a chunk over takes the executor about so long (bench_dispatch); the virtual one too.
OVERHEAD_SECONDS = 0.0003
# Items whose handing over is nothing to what they take, and items of which it is a part.
LONG_SECONDS, SHORT_SECONDS = 1.0, 0.01
TARGET, NOISE = 1.06, 1.01


def main() -> int:
    options = arguments()
    results: list[Result] = []
    for sigma in SIGMAS:
        for name, seconds, overhead in (
            ("long items", LONG_SECONDS, 0.0),
            ("short items", SHORT_SECONDS, 0.0),
            ("short, handed over", SHORT_SECONDS, OVERHEAD_SECONDS),
        ):
            runs = [study(sigma, seconds, overhead, seed) for seed in range(options.seeds)]
            results += of_case(f"sigma {sigma:g}, {name}", runs)
    return report("dynamic", results, as_json=options.json)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each case (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    if options.seeds < 1:
        sys.exit("--seeds: at least 1")
    return options


def study(
    sigma: float, seconds: float, overhead: float, seed: int
) -> tuple[float, float, float, int]:
    """Ours, pulling of single items and an equal split over the bound; chunks that we handed."""
    dice = Random(seed)
    costs = [seconds * dice.lognormvariate(0.0, sigma) for _ in range(ITEMS)]
    bound = max(sum(costs) / sum(SPEEDS), max(costs) / max(SPEEDS))
    ours, chunks = pulled(costs, PullScheduler(), overhead)
    single, _ = pulled(costs, None, overhead)
    return ours / bound, single / bound, split_equally(costs, overhead) / bound, chunks


def pulled(
    costs: list[float], scheduler: PullScheduler | None, overhead: float
) -> tuple[float, int]:
    """The makespan and the chunks, by the scheduler or, without one, of single items."""
    slots = [Slot(speed, overhead) for speed in SPEEDS]
    waiting = list(reversed(costs))
    if scheduler is not None:
        for number in range(len(slots)):
            scheduler.open_slot(number)
    events = [(0.0, number) for number in range(len(slots))]
    chunks, makespan = 0, 0.0
    while events:
        now, number = heapq.heappop(events)
        slot = slots[number]
        if slot.ends_at is not None and slot.ends_at > now:
            continue  # its chunk was cut short meanwhile, or is not over
        if slot.began_at is not None:
            makespan = max(makespan, now)
            if scheduler is not None:
                scheduler.finished(number, len(slot.items), now - slot.began_at)
            slot.began_at = slot.ends_at = None
            slot.items = []
        if not waiting and scheduler is not None:
            take_over(slots, scheduler, waiting, now, events)
        if waiting:
            count = 1 if scheduler is None else scheduler.take(number, len(waiting)).fresh
            slot.begin([waiting.pop() for _ in range(count)], now)
            heapq.heappush(events, (slot.ends_at or now, number))
            chunks += 1
    return makespan, chunks


class Slot:
    """A device in virtual time, and the chunk that it is at."""

    def __init__(self, speed: float, overhead: float) -> None:
        self.speed, self.overhead = speed, overhead
        self.items: list[float] = []
        self.began_at: float | None = None
        self.ends_at: float | None = None

    def begin(self, items: list[float], now: float) -> None:
        """Take a chunk."""
        self.items, self.began_at = items, now
        self.ends_at = now + self.overhead + sum(items) / self.speed

    def begun(self, now: float) -> int:
        """How many of its items are done or under way."""
        at, count = (self.began_at or 0.0) + self.overhead, 0
        for cost in self.items:
            if at > now and count:
                break
            at += cost / self.speed
            count += 1
        return count


def take_over(
    slots: list[Slot],
    scheduler: PullScheduler,
    waiting: list[float],
    now: float,
    events: list[tuple[float, int]],
) -> None:
    """Have what a busy slot has not begun given back, as the executor does."""
    left = {
        number: 1 + len(slot.items) - slot.begun(now)
        for number, slot in enumerate(slots)
        if slot.items
    }
    victim = scheduler.victim(left)
    if victim is None:
        return
    slot = slots[victim]
    begun = slot.begun(now)
    waiting.extend(reversed(slot.items[begun:]))
    slot.begin(slot.items[:begun], slot.began_at or 0.0)
    heapq.heappush(events, (slot.ends_at or now, victim))


def split_equally(costs: list[float], overhead: float) -> float:
    """The makespan of as many items for each device, handed over once."""
    count = len(SPEEDS)
    return max(overhead + sum(costs[number::count]) / speed for number, speed in enumerate(SPEEDS))


def of_case(case: str, runs: list[tuple[float, float, float, int]]) -> list[Result]:
    ours, single, equal, chunks = (list(column) for column in zip(*runs, strict=True))
    spread = f"{stdev(ours):.4f}" if len(ours) > 1 else "unknown"
    print(f"  {case}: {fmean(chunks):.0f} chunks of {ITEMS} items; spread over seeds {spread}")
    mean, count = fmean(ours), len(runs)
    alone, halves = ("single-item pulling", ""), ("equal split", "")
    return [
        Result(f"{case}: x bound", mean, fmean(equal), *halves, mean, TARGET, "lower", count),
        Result(
            f"{case}: / single",
            mean,
            fmean(single),
            *alone,
            mean / fmean(single),
            NOISE,
            "lower",
            count,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
