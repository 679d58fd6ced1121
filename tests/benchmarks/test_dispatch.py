"""The benchmark of dispatch answers in the common form; its peers are optional, its own parts run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_dispatch.py"


def run(part: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), "--quick", "--json", "--only", part]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("part", ["first", "turnaround"])
def test_what_needs_no_peer_of_others_is_measured(part):
    """Rule: one row with both figures, and a status that says whether the target is met."""
    done = run(part)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "dispatch"
    (row,) = answer["results"]
    assert row["ours"] > 0
    assert row["peer"] > 0
    assert done.returncode == (0 if row["ok"] else 1)


@pytest.mark.skipif(importlib.util.find_spec("joblib") is not None, reason="joblib is here")
def test_a_missing_peer_is_an_error():
    """Rule: what cannot be compared is no pass."""
    done = run("arrays")
    assert done.returncode == 1
    assert "joblib" in done.stderr
