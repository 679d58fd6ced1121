"""The benchmark of commands: its figures are of real runs, and a missing peer is an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from dispatch_commands import Machine  # noqa: E402 - from its own folder


def test_a_missing_peer_is_an_error(tmp_path):
    """Rule: without GNU parallel there is no result, and one line says what to install."""
    command = [sys.executable, str(BENCHMARKS / "dispatch_commands.py"), "--quick"]
    environ = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install parallel" in done.stderr


@pytest.mark.parametrize("run", [5, 50])
def test_memory_is_of_a_run_that_did_its_items(run, tmp_path):
    """Rule: only the items that are left are run, all of them, and the peak is a process's."""
    result = Machine(tmp_path).memory(50, run)
    assert len((tmp_path / "log").read_text().splitlines()) == 1 + run
    assert 10 < result.ours < 1000
    assert result.target == 150
