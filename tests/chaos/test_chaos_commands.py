"""Commands under fire: whatever dies, the journal knows what is left, and nothing stays behind."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from monkey import Monkey, marked, memory_cgroup, wait_until
from scripted_job import (
    HANGING,
    ITEMS,
    KILLED_FOR_MEMORY,
    LIMITED,
    LOST,
    SEED,
    TROUBLES,
    Run,
)

from exo.gpu.coordination.jobs import story_of
from exo.gpu.execution.outcome import Evidence, classify, oom_kills
from exo.gpu.vocabulary.job import Cause
from exo.gpu.vocabulary.journal import ItemEnded


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with memory_cgroup(2**26) as cgroup:
        made = Run(tmp_path, cgroup)
        yield made
        for pid in marked(made.mark):  # only where the test has failed
            os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_chaos_every_item_succeeds_exactly_once(run: Run, tmp_path: Path) -> None:
    """Rule: after --resume each item has one recorded success; no process and no lease is left."""
    spared = tuple(f"item.sh {item}" for item in TROUBLES)
    monkey = Monkey("item.sh", pause_seconds=(0.02, 0.2), seed=SEED, spared=spared)
    print(f"EXO_GPU_CHAOS_SEED={SEED}")  # shown where the test fails
    parent = run.begin()
    with monkey.at(parent.pid):
        wait_until(lambda: run.has_had_its_troubles() or parent.poll() is not None, "half of it")
    assert parent.poll() is None, "it ended before its half was done"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    run.nothing_is_left()
    done = set(run.successes())

    resumed = run.begin("--resume")
    with monkey.at(resumed.pid):
        resumed.wait()
    for _ in range(3):
        if resumed.returncode == 0:
            break
        resumed = run.begin("--resume")
        resumed.wait()
    assert resumed.returncode == 0
    run.nothing_is_left()
    wait_until(lambda: not run.leases(), "the end of every lease")

    assert done
    assert run.successes() == Counter(range(ITEMS))
    assert monkey.killed_workers
    assert monkey.killed_groups
    logged = Counter(
        int(seq)
        for seq, *_, exit_value, killed_by, _ in (
            line.split("\t", 8) for line in (tmp_path / "log").read_text().splitlines()[1:]
        )
        if (exit_value, killed_by) == ("0", "0")
    )
    assert logged == Counter(range(1, ITEMS + 1))
    _each_trouble_is_told(run)


def _each_trouble_is_told(run: Run) -> None:
    """The journal says what became of each first try, where the next one went, and what began twice."""
    tries = run.tries()
    first = {item: next(one for one in tries if one.item == item) for item in TROUBLES}
    _assert_told(first[LOST], Cause.DEVICE_LOST, "device lost")
    _assert_told(first[LIMITED], Cause.OUT_OF_HOST_MEMORY, "MemoryError")
    _assert_told(first[HANGING], Cause.TIMEOUT, "longer than 3 s")
    if run.cgroup is not None:
        _assert_told(first[KILLED_FOR_MEMORY], Cause.OUT_OF_HOST_MEMORY, "for want of memory")
    lost = (run.folder / "lost").read_text().strip().replace("GPU-", "cuda:")
    (success,) = (one for one in tries if one.item == LOST and one.succeeded)
    assert success.device_id != lost
    starts = Counter(map(int, (run.folder / "started").read_text().split()))
    told = Counter(one.item for one in tries if one.attempt > 1) + run.begun()
    assert {item for item, count in starts.items() if count > told[item]} == set()
    assert story_of(run.journal).summary.started_again >= sum(n > 1 for n in run.begun().values())


def _assert_told(one: ItemEnded, cause: Cause, words: str) -> None:
    assert (one.cause, words in one.reason) == (cause, True), one.reason


def test_the_kernels_killer_is_known_by_its_counter() -> None:
    """Rule: SIGKILL while the recorded counter goes up is memory; without a step it is somebody's."""
    before, after = "low 0\nmax 3\noom 1\noom_kill 1\n", "low 0\nmax 9\noom 2\noom_kill 2\n"
    step = (oom_kills(after) or 0) - (oom_kills(before) or 0)
    assert step == 1
    killed = classify(Evidence(returncode=-signal.SIGKILL, oom_kills=step))
    assert killed.cause is Cause.OUT_OF_HOST_MEMORY
    by_hand = classify(Evidence(returncode=-signal.SIGKILL, oom_kills=0))
    assert by_hand.cause is Cause.KILLED
