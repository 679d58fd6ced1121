"""The benchmark of leases: its log shows over-commitment, and its script answers in the form."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench_leases import DEVICE_BYTES, overcommitments  # noqa: E402 - from its own folder


def test_the_log_shows_what_was_given_twice(tmp_path):
    """Rule: a device that held more than it has at any moment is counted."""
    log = tmp_path / "log"
    log.write_text(f"took a cuda:0 {DEVICE_BYTES}\nreleased a\ntook b cuda:0 1\n")
    assert overcommitments(log) == (0, 2)
    log.write_text(f"took a cuda:0 {DEVICE_BYTES}\ntook b cuda:0 1\nreleased a\n")
    assert overcommitments(log) == (1, 2)


def test_the_script_measures_all_of_it():
    """The script itself runs, small: seven rows, nothing over-committed, nothing left behind."""
    words = ["--runs", "5", "--processes", "2", "--leases", "8", "--starts", "1", "--json"]
    command = [sys.executable, str(BENCHMARKS / "bench_leases.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "leases"
    rows = {row["metric"]: row for row in answer["results"]}
    assert len(rows) == 7
    for metric in ("crowd: over-commitments", "crowd: leases left behind"):
        assert rows[metric]["ours"] == 0
    assert rows["crowd: over-commitments"]["n"] == 8
