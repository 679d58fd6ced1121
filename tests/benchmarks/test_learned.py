"""The studies of pulling and of prediction, on cases of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_pulling_stays_near_the_bound_for_unlike_items():
    """Rule: the figures are those of the real scheduler, and the equal split is far behind."""
    command = [sys.executable, BENCHMARKS / "bench_dynamic.py", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    bounds = [one for one in results if one["metric"].endswith("x bound")]
    assert len(bounds) == 6
    assert all(1.0 <= one["value"] < one["peer"] for one in bounds)


def test_a_table_that_is_no_table_is_named(tmp_path):
    """Rule: a folder without Gavel's files ends in one line that names what is missing."""
    command = [sys.executable, BENCHMARKS / "bench_gavel.py", "--data", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert str(tmp_path) in done.stderr
