"""The benchmark of decisions: it runs, and both peers choose what the product chooses."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FIELDS = {"metric", "ours", "peer", "peer_name", "peer_version", "value", "target", "better"}


def test_a_small_run_answers_in_the_form_and_all_agree():
    """Rule: every row has the fields of the form, and no peer ever chooses another device."""
    command = [sys.executable, str(BENCHMARKS / "bench_select.py"), "--json"]
    command += ["--decisions", "40", "--largest", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "select"
    rows = {row["metric"]: row for row in answer["results"]}
    assert len(rows) == 7
    assert all(set(row) >= FIELDS for row in rows.values())
    assert [rows[f"{size} devices: same answers"]["value"] for size in (8, 64, 1000)] == [1, 1, 1]
