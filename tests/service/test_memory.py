"""A service holds what it needs, however large what it once held was."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import psutil
from exo.gpu.service.memory import return_large_buffers

if sys.argv[1] == "with" and not return_large_buffers():
    print("none")
    sys.exit()
MIB = 2**20
before = psutil.Process().memory_info().rss
largest = bytearray(b"x") * (30 * MIB)
del largest  # by itself, the C library keeps all that is smaller from now on
buffers = [bytearray(b"x") * (2 * MIB) for _ in range(40)]
stays = bytearray(b"x") * 4096  # behind them
buffers.clear()
print((psutil.Process().memory_info().rss - before) // MIB)
"""


def grown(said: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, said], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the C library of Linux")
def test_large_buffers_go_back_to_the_system() -> None:
    """Rule: what a busy minute took is not held for the life of the service."""
    grown_mib = grown("with")
    if grown_mib == "none":
        pytest.skip("this C library has no such setting")
    assert int(grown_mib) < 10 <= int(grown("without"))
