"""Philly's jobs on fewer GPUs, at three loads: disciplines of the line beside each other.

Ours stands twice beside the others, with the same targets: by what each job said that it would
take, as ``--expect`` tells the line (here the true length, which backfilling and shortest first
know too), and by lengths predicted from what ended before.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from results import Result, parsed_with_data, report

from exo.gpu.simulation.replay import DISCIPLINES, replay
from exo.gpu.simulation.traces.philly import read_philly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.simulation.jobs import Job
    from exo.gpu.simulation.outcome import Summary

LOADS = (0.70, 0.85, 0.95)
QUICK_JOBS = 4000
SHORTEST_FACTOR, DELAY_FACTOR = 1.15, 1.10
SOURCE = "https://github.com/petuum/adaptdl (branch osdi21-artifact, philly.csv)"


def devices_for(jobs: Sequence[Job], load: float) -> int:
    """So many that the work offered while jobs arrive is that part of what they could do."""
    work = sum(job.gpus * job.run_seconds for job in jobs)
    most = max(job.gpus for job in jobs)
    return max(most, round(work / jobs[-1].arrived_seconds / load))


OURS = ("line", "line-predicted")


def compare(load: float, found: dict[str, Summary], name_of_ours: str) -> list[Result]:
    """Our line beside first come first served and shortest first."""
    ours, backfill, shortest = (
        found[name] for name in (name_of_ours, "fifo-backfill", "shortest-true")
    )
    mean = float(ours.completion_mean_seconds or 0)
    delay = float(ours.waiting_p999_seconds or 0)
    rows: list[Result] = []
    for metric, value, peer, name, target in (
        ("mean completion", mean, backfill.completion_mean_seconds, "fifo-backfill", 1.0),
        ("mean completion", mean, shortest.completion_mean_seconds, "shortest", SHORTEST_FACTOR),
        ("p99.9 delay", delay, backfill.waiting_p999_seconds, "fifo-backfill", DELAY_FACTOR),
    ):
        beside = float(peer or 0)
        label = f"{load:.0%} {name_of_ours}, {metric} / {name}"
        ratio = value / beside
        rows.append(
            Result(label, value, beside, name, "run here", ratio, target, "lower", ours.jobs)
        )
    return rows


def main() -> int:
    """Run every discipline at every load; 0 when every target is met."""
    options = _options()
    jobs = read_philly(options.data / "philly.csv")
    if options.quick:
        jobs = jobs[-QUICK_JOBS:]
        jobs = tuple(job.at(job.arrived_seconds - jobs[0].arrived_seconds) for job in jobs)
    results: list[Result] = []
    heads = ("load", "discipline", "mean (h)", "p50 (h)", "p99.9 delay (h)", "slowdown", "run (s)")
    print("".join(f"{head:>20}" for head in heads))
    for load in LOADS:
        devices, found = devices_for(jobs, load), {}
        for name in DISCIPLINES:
            begun = time.process_time()
            one = found[name] = replay(jobs, devices, name)
            cells = (
                f"{load:.0%} of {devices}",
                name,
                f"{(one.completion_mean_seconds or 0) / 3600:.2f}",
                f"{(one.completion_p50_seconds or 0) / 3600:.2f}",
                f"{(one.waiting_p999_seconds or 0) / 3600:.1f}",
                f"{one.worst_slowdown or 0:.0f}",
                f"{time.process_time() - begun:.1f}",
            )
            print("".join(f"{cell:>20}" for cell in cells), flush=True)
        for name in OURS:
            results += compare(load, found, name)
    return report("online", results, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"the last {QUICK_JOBS} jobs alone")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parsed_with_data(parser, "online", SOURCE)


if __name__ == "__main__":
    sys.exit(main())
