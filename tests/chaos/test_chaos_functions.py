"""Python functions under fire: each result once, and a parent that is killed leaves nothing."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from monkey import MARK, Monkey, marked, wait_until
from scripted_job import ITEMS, SEED, Run

# Results come back on standard output, one a line.
PROGRAM = f"""
import os, resource, sys, time
from pathlib import Path
from exo.gpu import GPUExecutor

FOLDER = Path(os.environ["CHAOS"])

def first(name):
    try:
        (FOLDER / f"once-{{name}}").mkdir()
    except FileExistsError:
        return False
    return True

def work(number):
    (FOLDER / "at-work" / str(os.getpid())).touch()
    if number == {ITEMS // 10} and first("limited"):
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
        bytearray(2**30)
    if number == {ITEMS // 5} and first("closed"):
        os._exit(0)
    time.sleep(0.005)
    return number

with GPUExecutor(slots=2, max_attempts=20) as executor:
    for done in executor.stream(work, range({ITEMS})):
        print(done.result, flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path, None)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "at-work").mkdir()
    yield made
    for pid in marked(made.mark):  # only where the test has failed
        os.kill(pid, signal.SIGKILL)


def begin(run: Run) -> subprocess.Popen[str]:
    assert run.environ[MARK]
    return subprocess.Popen(
        [sys.executable, "program.py"],
        env=run.environ,
        cwd=run.folder,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(600)
def test_chaos_every_result_comes_once(run: Run) -> None:
    """Rule: workers and their groups die all the time, one for memory; every item has one result."""
    print(f"EXO_GPU_CHAOS_SEED={SEED}")  # shown where the test fails
    monkey = Monkey(
        "execution/worker.py",
        pause_seconds=(0.1, 0.4),
        seed=SEED,
        at_work=lambda pid: (run.folder / "at-work" / str(pid)).exists(),
    )
    parent = begin(run)
    with monkey.at(parent.pid):
        out, _ = parent.communicate()
    assert parent.returncode == 0
    assert Counter(map(int, out.split())) == Counter(range(ITEMS))
    assert monkey.killed_workers + monkey.killed_groups > 0
    run.nothing_is_left()


@pytest.mark.timeout(600)
def test_chaos_a_killed_parent_leaves_nothing(run: Run) -> None:
    """Rule: SIGKILL of the program ends its workers, and with them the leases; no result came twice."""
    parent = begin(run)
    seen = [parent.stdout.readline() for _ in range(ITEMS // 10)]
    os.killpg(os.getpgid(secrets.choice(_workers(parent.pid))), signal.SIGKILL)
    seen += [parent.stdout.readline() for _ in range(ITEMS // 10)]
    assert len(_workers(parent.pid)) > 1
    parent.send_signal(signal.SIGKILL)
    rest, _ = parent.communicate()
    results = Counter([*map(int, seen), *map(int, rest.splitlines()[:-1])])
    assert set(results.values()) == {1}
    run.nothing_is_left()
    wait_until(lambda: not run.leases(), "the end of every lease")


def _workers(pid: int) -> list[int]:
    import psutil

    children = psutil.Process(pid).children(recursive=True)
    return [one.pid for one in children if any("worker.py" in word for word in one.cmdline())]
