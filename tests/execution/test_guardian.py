"""What we started does not outlive us, whatever ends us; and what left on purpose does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exo.gpu.execution.guardian import Guardian, end_all
from exo.gpu.execution.pinning import GUARDED_VARIABLE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the mark is looked up in /proc")


def start(mark: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        ["/bin/sh", "-c", "sleep 600 & echo $!; wait"],
        env={**os.environ, GUARDED_VARIABLE: mark},
        stdout=subprocess.PIPE,
        **options,
    )


def gone(pid: int) -> None:
    """Return once a process has ended, reaped or not."""
    while True:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        os.sched_yield()


def test_every_group_of_the_session_that_bears_the_mark_is_ended():
    """The command, and what it started; not another mark's, and not one that left the session."""
    mine, other = start("mark-a", process_group=0), start("mark-b", process_group=0)
    daemon = start("mark-a", start_new_session=True)
    try:
        child = int(mine.stdout.readline())
        assert end_all("mark-a", os.getsid(0)) == 1
        gone(child)
        assert mine.wait() == -signal.SIGKILL
        assert (other.poll(), daemon.poll()) == (None, None)
        assert end_all("mark-a", os.getsid(0)) == 0
    finally:
        for process in (other, daemon):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for process in (mine, other, daemon):
            process.stdout.close()


def test_the_guardian_ends_all_once_its_program_is_killed(tmp_path):
    """kill -9 of the program and its whole group: the guardian is in a session of its own."""
    code = (
        "import os, subprocess, sys\n"
        "from exo.gpu.execution.guardian import Guardian\n"
        "guardian = Guardian()\n"
        f"env = {{**os.environ, {GUARDED_VARIABLE!r}: guardian.mark}}\n"
        "command = subprocess.Popen(['/bin/sh', '-c', 'sleep 600 & echo $!; wait'], env=env,\n"
        "    process_group=0, stdout=subprocess.PIPE)\n"
        "print(command.pid, command.stdout.readline().decode().strip(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        process_group=0,
    ) as program:
        command, child = map(int, program.stdout.readline().split())
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        gone(command)
        gone(child)


def test_a_guardian_that_is_told_that_all_is_done_ends_nothing():
    guardian = Guardian()
    kept = start(guardian.mark, process_group=0)
    kept.stdout.readline()
    guardian.close()
    guardian.close()
    assert kept.poll() is None
    os.killpg(kept.pid, signal.SIGKILL)
    kept.wait()
    kept.stdout.close()


def test_a_guardian_that_was_killed_harms_nothing():
    guardian = Guardian()
    guardian._process.kill()
    guardian._process.wait()
    guardian.close()
