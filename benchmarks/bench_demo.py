"""How well the demo's work is balanced: tiles pulled by free slots, against an equal split."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from results import Result, report

from exo.gpu import __version__

DEMO = Path(__file__).parents[1] / "examples" / "mandelbrot" / "demo.py"
BALANCE_TARGET = 1.15
AGREEMENT_TARGET = 0.999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of the whole demo (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options, demo_options = parser.parse_known_args()
    runs = [drawn(demo_options) for _ in range(options.runs)]
    peer = {"peer_name": "equal split of exo-gpu", "peer_version": __version__}
    equal, pulled = zip(*runs, strict=True)
    balances = median(map(balance, pulled)), median(map(balance, equal))
    spans = median(map(makespan, pulled)), median(map(makespan, equal))
    agreements = min(map(agreement, pulled)), min(map(agreement, equal))
    rows = [
        ("balance", *balances, balances[0], BALANCE_TARGET, "lower"),
        ("balance, equal split / pull", *balances, balances[1] / balances[0], 1.0, "higher"),
        ("makespan, equal split / pull", *spans, spans[1] / spans[0], 1.0, "higher"),
        ("agreement of devices, least", *agreements, min(agreements), AGREEMENT_TARGET, "higher"),
    ]
    results = [
        Result(metric, ours, other, **peer, value=value, target=target, better=better, n=len(runs))
        for metric, ours, other, value, target, better in rows
    ]
    return report("demo", results, as_json=options.json)


def drawn(options: list[str]) -> tuple[dict, dict]:
    """The two phases of one run: the equal split, then pull-based."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(DEMO), "--all-devices", "--json", "--output", folder]
        run = subprocess.run([*command, *options], check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode not in {0, 1} or not run.stdout:  # 1: drawn, but the devices disagree
        sys.exit(f"the demo ended with status {run.returncode}")
    first, second = json.loads(run.stdout.splitlines()[-1])["phases"]
    return first, second


def balance(phase: dict) -> float:
    return phase["balance"]


def makespan(phase: dict) -> float:
    return phase["makespan_seconds"]


def agreement(phase: dict) -> float:
    """A single device has no seam to compare: that is an error here, not a pass."""
    ratio = phase["agreement"]["ratio"]
    if ratio is None:
        sys.exit("the benchmark needs at least two devices")
    return ratio


if __name__ == "__main__":
    sys.exit(main())
