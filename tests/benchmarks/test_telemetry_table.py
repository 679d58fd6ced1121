"""The benchmark of the device table measures four figures, each beside a plain collector."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "telemetry_table.py"


def test_every_figure_stands_beside_its_peer():
    """Rule: samples, readings, memory and aggregate are measured in one run, and all can be missed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "telemetry_table"
    assert [row["target"] for row in answer["results"]] == [300_000, 5_000_000, 100, 200]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in answer["results"])
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)
