"""The benchmark of memory operations runs on the real drivers and answers in the common form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_backend.py"


def test_every_driver_is_measured_beside_numpy(vulkan_environment):
    """Rule: copy, write and read of both drivers in one run, each with NumPy's figure beside it."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "1", "--mib", "4", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "backend"
    assert len(answer["results"]) == 6
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in answer["results"])
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


def test_without_a_device_it_is_an_error(tmp_path, monkeypatch):
    """Rule: what cannot be compared is no pass."""
    nothing = tmp_path / "none.json"
    nothing.write_text("{}")
    monkeypatch.setenv("VK_DRIVER_FILES", str(nothing))
    monkeypatch.setenv("VK_ICD_FILENAMES", str(nothing))
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs a Vulkan device" in done.stderr
