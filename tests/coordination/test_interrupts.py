"""Ctrl-C ends a program that has an executor, wherever it comes: no process and no lease is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from exo.gpu.nodes.local import LocalNode

WAIT_SECONDS = 60

# Each is interrupted while its workers are at items that never end by themselves.
PROGRAMS = {
    "waits for a future, outside of a with block": """
        executor = GPUExecutor()
        executor.submit(touch_and_wait, marks).result()
    """,
    "waits for results, outside of a with block": """
        list(GPUExecutor().map(touch_and_wait, iter([marks] * 4)))
    """,
    "does something else meanwhile": """
        executor = GPUExecutor()
        futures = [executor.submit(touch_and_wait, marks) for _ in range(8)]
        signal.pause()
    """,
    "waits at the end of a with block": """
        with GPUExecutor() as executor:
            futures = [executor.submit(touch_and_wait, marks) for _ in range(8)]
    """,
    "waits in a coroutine": """
        async def main():
            with GPUExecutor() as executor:
                async for _ in executor.map(touch_and_wait, [marks] * 4):
                    pass
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("body", PROGRAMS.values(), ids=PROGRAMS)
def test_an_interrupt_leaves_no_process_and_no_lease(two_fakes, tmp_path, body):
    """Rule: one interrupt is enough, and nobody waits for work that never ends."""
    marks = tmp_path / "marks"
    marks.mkdir()
    head = f"""
        import asyncio, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1] / "execution")!r})
        from functions import touch_and_wait
        from exo.gpu import GPUExecutor
        marks = {str(marks)!r}
    """
    program = textwrap.dedent(head) + textwrap.dedent(body)
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as child:
        try:
            while not any(marks.iterdir()):
                assert child.poll() is None
                os.sched_yield()
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=WAIT_SECONDS)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in errors
    assert not [mark.name for mark in marks.iterdir() if psutil.pid_exists(int(mark.name))]
    with LocalNode() as node:
        assert not any(state.leases for state in node.snapshot().devices)


@pytest.mark.parametrize(
    "body",
    [
        "GPUExecutor().map(Path.touch, names)",
        "executor = GPUExecutor(); executor.map(Path.touch, names); executor.shutdown(wait=False)",
        "executor = GPUExecutor(); executor.map(Path.touch, names)",
    ],
    ids=["forgotten", "not waited for", "left open"],
)
def test_what_was_submitted_is_done_before_the_program_ends(two_fakes, tmp_path, body):
    """Rule: as with the standard executors, an end that nobody asked for cuts nothing off."""
    program = f"""
        from pathlib import Path
        from exo.gpu import GPUExecutor
        names = [Path({str(tmp_path)!r}, str(n) + ".done") for n in range(200)]
        {body}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    assert len(list(tmp_path.glob("*.done"))) == 200
