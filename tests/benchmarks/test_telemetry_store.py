"""The benchmark of the history: each figure beside plain rows, and nothing dropped on the way."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "telemetry_store.py"


def test_every_figure_stands_beside_plain_rows():
    """Rule: rate, sizes and reading time are measured in one run, and the status says the verdict."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.stderr == ""
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "telemetry store"
    assert len(answer["results"]) == 4
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in answer["results"])
    size = answer["results"][1]
    assert size["ours"] < size["peer"]
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)
