"""The benchmark of the service runs small, and tells what it cannot measure."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_service  # noqa: E402 - from its own folder


def test_the_load_is_measured():
    """Rule: the script runs, and its last line has a row for each target of the load."""
    script = BENCHMARKS / "bench_service.py"
    words = ["--part", "load", "--seconds", "6", "--settled", "3", "--json"]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "service"
    assert len(answer["results"]) == 4
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


def test_a_missing_browser_is_told_in_one_line(monkeypatch, capsys):
    """Rule: without Chromium the page is no pass."""
    monkeypatch.setattr(bench_service.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bench_service.py", "--part", "page"])
    assert bench_service.main() == 1
    assert capsys.readouterr().err.startswith("bench_service: no Chromium here")
