"""The benchmark of telemetry joins its four parts in one answer; a missing peer ends it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_telemetry  # noqa: E402 - from its own folder
from results import Result  # noqa: E402


def test_parts_come_in_one_answer():
    """Rule: the script runs, its last line has the rows of the part that was asked for."""
    script = BENCHMARKS / "bench_telemetry.py"
    command = [sys.executable, str(script), "--quick", "--part", "hour", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "telemetry"
    assert [row["better"] for row in answer["results"]] == ["lower", "lower"]
    assert done.returncode == (0 if all(row["ok"] for row in answer["results"]) else 1)


@pytest.mark.parametrize("met", [True, False])
def test_every_part_is_asked_and_one_miss_fails_all(monkeypatch, capsys, met):
    def row(name: str, value: float):
        return lambda quick: [Result(name, value, 1, "peer", "1", value, 1, "higher", 1)]

    parts = {"sampling": row("one", 2.0), "table": row("two", 2.0 if met else 0.5)}
    monkeypatch.setattr(bench_telemetry, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["bench_telemetry.py", "--json"])
    assert bench_telemetry.main() == (0 if met else 1)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["metric"] for one in answer["results"]] == ["one", "two"]


def test_a_missing_peer_is_told_in_one_line(monkeypatch, capsys):
    def missing(quick: bool):
        raise RuntimeError("no gpustat here")

    monkeypatch.setattr(bench_telemetry, "PARTS", {"sampling": missing})
    monkeypatch.setattr(sys, "argv", ["bench_telemetry.py"])
    assert bench_telemetry.main() == 1
    assert capsys.readouterr().err == "bench_telemetry: no gpustat here\n"
