"""The benchmarks of sampling: they compare like with like, and a missing peer is an error."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import telemetry_hour  # noqa: E402 - from its own folder
import telemetry_sampling  # noqa: E402


def test_a_missing_peer_is_an_error():
    """Rule: without the peer there is no result, and one line says what to install."""
    with pytest.raises(RuntimeError, match="pip install no-such-peer"):
        telemetry_sampling.installed("no-such-peer")


def test_a_ratio_is_the_median_of_ratios():
    """Rule: each run is compared with its own; less is better below 1, more above."""
    pairs = [[1.0, 2.0], [1.0, 4.0], [3.0, 4.0]]
    lower = telemetry_sampling.beside("m", pairs, ("peer", "1"), target=0.7)
    assert (lower.value, lower.better, lower.n) == (0.5, "lower", 3)
    higher = telemetry_sampling.beside("m", pairs, ("peer", "1"), target=100)
    assert (higher.value, higher.better) == (2, "higher")


def test_our_readings_are_the_peers_readings(tmp_path):
    """Rule: the comparison refuses to run where our samples differ from the peer's."""
    if importlib.util.find_spec("nvitop") is None or shutil.which("cc") is None:
        pytest.skip("needs nvitop and a C compiler")
    machine = telemetry_sampling.Machine(tmp_path)
    ((mine, its),) = machine.ask(2, telemetry_sampling.SNAPSHOTS, 1)
    assert mine > 0
    assert its > 0
    wrong = telemetry_sampling.SNAPSHOTS.replace("snapshot.fan_speed", "snapshot.temperature")
    with pytest.raises(RuntimeError, match="fan_percent"):
        machine.ask(2, wrong, 1)


def test_the_hour_runs_in_virtual_time():
    """Rule: no tick of a sound device drifts, and what is held does not grow once settled."""
    drift, memory = telemetry_hour.results(quick=True)
    assert drift.value == 0
    assert drift.ok
    assert memory.value < 1.05  # quick: few devices, so small objects of the interpreter show
