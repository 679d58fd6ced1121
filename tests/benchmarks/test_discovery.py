"""The benchmark of discovery: a missing peer is an error, and a device twice is no success."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench_discovery import AMD, INTEL, NVIDIA, share_found  # noqa: E402 - from its own folder


def answer(vulkan: int = 0) -> dict:
    counts = {"cuda": NVIDIA, "rocm": AMD, "level_zero": INTEL, "vulkan": vulkan}
    found = [
        [backend, f"{backend} {number}", None]
        for backend, count in counts.items()
        for number in range(count)
    ]
    return {"found": found, "vulkan": vulkan}


def test_a_missing_peer_is_an_error():
    """Rule: without the peer there is no result, and one line says what to install."""
    command = [sys.executable, str(BENCHMARKS / "bench_discovery.py"), "--nvitop", "no-such-peer"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "pip install nvitop" in done.stderr


def test_every_device_counts_once():
    """Rule: all is 1, one missing is less, and one device listed twice is nothing."""
    assert share_found(answer(vulkan=2)) == 1
    less = answer()
    del less["found"][0]
    assert 0.9 < share_found(less) < 1
    twice = answer()
    twice["found"].append(["vulkan", "cuda 0", None])
    assert share_found(twice) == 0
