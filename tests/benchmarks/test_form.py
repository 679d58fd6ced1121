"""Every benchmark answers in one form, and nothing but its own runs decides whether it is met."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from results import Result, report  # noqa: E402 - the scripts import it from their own folder

FIELDS = {
    "metric",
    "ours",
    "peer",
    "peer_name",
    "peer_version",
    "value",
    "target",
    "better",
    "n",
    "ok",
}


def result(value, target, better):
    return Result("a time", value, 1.0, "a peer", "1.0", value, target, better, 3)


@pytest.mark.parametrize(
    ("value", "target", "better", "met"),
    [
        (1.0, 1.5, "lower", True),
        (2.0, 1.5, "lower", False),
        (2.0, 1.5, "higher", True),
        (1.0, 1.5, "higher", False),
        (float("nan"), 1.5, "lower", False),
        (float("nan"), 1.5, "higher", False),
    ],
)
def test_a_target_is_met_on_the_better_side_only(value, target, better, met):
    """Lower or higher is better, and what is no number meets nothing."""
    assert result(value, target, better).ok is met


def test_a_direction_must_be_one_of_two():
    """A misspelt direction would turn every miss into a pass."""
    with pytest.raises(ValueError, match="smaller"):
        result(1.0, 1.5, "smaller")


def test_one_missed_target_fails_the_whole_benchmark(capsys):
    """The status is 1, the table says NO, and the last line is the object."""
    rows = [result(1.0, 1.5, "lower"), result(2.0, 1.5, "lower")]
    assert report("thing", rows, as_json=True) == 1
    lines = capsys.readouterr().out.splitlines()
    answer = json.loads(lines[-1])
    assert answer["benchmark"] == "thing"
    assert [row["ok"] for row in answer["results"]] == [True, False]
    assert sum(line.endswith("NO") for line in lines) == 1


def test_the_start_of_help_is_measured_beside_click():
    """The script itself runs, and its last line has every field of the form."""
    command = [sys.executable, str(BENCHMARKS / "bench_help.py"), "--runs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["benchmark"] == "help"
    (row,) = answer["results"]
    assert set(row) == FIELDS
    assert done.returncode == (0 if row["ok"] else 1)
