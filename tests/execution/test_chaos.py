"""Holders, waiters and releasing processes killed at random: nothing is ever given twice."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos import judge, pushed_in, run

from exo.gpu.execution.lease_store import LeaseStore
from exo.gpu.execution.state_directory import StorePlace, boot_id

SECONDS = float(os.environ.get("EXO_GPU_CHAOS_SECONDS", "4"))


@pytest.mark.timeout(60 + 3 * SECONDS)
def test_whatever_is_killed_nothing_is_over_committed_and_nothing_stays():
    """Rule: no over-commitment ever, no lease without a process, all served in order."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        judge_all(folder)
    finally:
        shutil.rmtree(folder)


def judge_all(folder):
    lines, kills = run(folder, SECONDS)
    faults, counts = judge(lines)
    assert faults == []
    assert kills > 3
    assert counts["took"] > 20, counts
    assert counts["queued"] > 0
    assert pushed_in(lines) == []
    store = LeaseStore(StorePlace(folder / "store", "chaos", "chaos"))
    ends = time.monotonic() + 30
    while store.live():  # of the children that outlived their parents
        assert time.monotonic() < ends
        time.sleep(0.05)
    with store.transaction() as book:
        assert book.waiters == ()
    store.close()
    home = folder / "store" / f"boot-{boot_id()}"
    assert not list(home.glob("locks/*"))
    assert not list(home.glob("ended/*"))


def test_the_judge_sees_what_is_wrong():
    """Rule: a check that cannot fail shows nothing."""
    twice = ["took 1 a cuda:0 whole", "took 2 b cuda:0 slot"]
    assert judge(twice)[0]
    assert not judge([twice[0], "released 1 a", twice[1]])[0]
    assert not judge([twice[0], "killed 1", twice[1]])[0]
    assert judge([twice[0], "handed 1 a", "killed 1", twice[1]])[0]
    full = [f"took {pid} {pid} cuda:1 slot" for pid in range(4)]
    assert judge(full)[0]
    assert not judge(full[:3])[0]
    order = ["queued 1 a whole", "queued 2 b whole", "took 2 x cuda:0 whole", "left 2 b"]
    assert pushed_in([*order, "took 1 y cuda:0 whole", "left 1 a"]) == [("a", "b")]
    assert pushed_in(order) == []
