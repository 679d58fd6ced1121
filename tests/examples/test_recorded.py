"""Every small example prints what is recorded beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def test_every_example_has_a_recording_and_the_reverse():
    """A script without its output, or an output without its script, is a mistake."""
    assert {path.stem for path in SCRIPTS} == {path.stem for path in EXAMPLES.glob("*.out")}
    assert SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_prints_what_is_recorded(script):
    """Run as a reader runs it, on the scripted devices of examples/devices.json."""
    environ = {**os.environ, "EXO_GPU_FAKE": str(EXAMPLES / "devices.json")}
    run = subprocess.run(
        [sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == script.with_suffix(".out").read_text()
