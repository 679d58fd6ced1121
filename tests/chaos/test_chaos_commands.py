"""Commands under fire: whatever dies, the journal knows what is left, and nothing stays behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from monkey import MARK, Monkey, marked, memory_cgroup, wait_until

from exo.gpu.coordination.jobs import story_of, tries_of
from exo.gpu.execution.journal import read_records
from exo.gpu.execution.outcome import Evidence, classify, oom_kills
from exo.gpu.vocabulary.job import Cause
from exo.gpu.vocabulary.journal import ItemBegun, ItemEnded

GIB = 2**30
ITEMS = int(os.environ.get("EXO_GPU_CHAOS_ITEMS", "2000"))
SEED = int(os.environ.get("EXO_GPU_CHAOS_SEED", "0")) or secrets.randbits(32)

# Each of these items makes its trouble at its first try; later it is like any other.
HANGING, LOST, LIMITED, KILLED_FOR_MEMORY = (ITEMS * part // 100 for part in (2, 10, 20, 30))
TROUBLES = (HANGING, LOST, LIMITED, KILLED_FOR_MEMORY)

# An item: it leaves a trace of each start, and may get into trouble.
ITEM = f"""
first() {{ mkdir "$CHAOS/once-$1" 2>/dev/null; }}
echo "$1" >> "$CHAOS/started"
case "$1" in
{LOST})
    if first lost; then
        echo "$EXO_GPU_FAKE_VISIBLE" > "$CHAOS/lost"
        cp "$CHAOS/without-$EXO_GPU_FAKE_VISIBLE.json" "$CHAOS/next.json"
        mv "$CHAOS/next.json" "$EXO_GPU_FAKE"
        echo "NVRM: Xid 79: GPU has fallen off the bus." >&2
        exit 1
    fi ;;
{LIMITED})
    if first limited; then
        exec "$PYTHON" -c 'import resource
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
bytearray(2**30)'
    fi ;;
{HANGING})
    if first hanging; then trap "" TERM; sleep 1000; fi ;;
{KILLED_FOR_MEMORY})
    if [ -n "$CGROUP" ] && first killed; then
        echo $$ > "$CGROUP/cgroup.procs"
        exec "$PYTHON" -c 'x = bytearray(2**28); x[::4096] = b"x" * len(x[::4096])'
    fi ;;
esac
sleep 0.01
"""


class Run:
    """A job of ``exo-gpu map`` on three scripted devices, and what it leaves behind."""

    def __init__(self, folder: Path, cgroup: Path | None) -> None:
        self.folder, self.mark, self.cgroup = folder, secrets.token_hex(8), cgroup
        self.journal = folder / "log.journal"
        devices = [_device(number) for number in range(3)]
        _write(folder / "devices.json", devices)
        for lost in devices:
            others = [one if one is not lost else one | {"fail": "GPU is lost"} for one in devices]
            _write(folder / f"without-{lost['hardware_id']}.json", others)
        (folder / "item.sh").write_text(ITEM)
        self.environ = os.environ | {
            MARK: self.mark,
            "CHAOS": str(folder),
            "CGROUP": str(cgroup or ""),
            "PYTHON": sys.executable,
            "EXO_GPU_FAKE": str(folder / "devices.json"),
        }

    def exo_gpu(self, *words: str, **more) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "exo.gpu", *words]
        return subprocess.Popen(command, env=self.environ, cwd=self.folder, **more)

    def begin(self, *options: str) -> subprocess.Popen[bytes]:
        words = ["map", "-j", "2", "--timeout", "3s", "--joblog", "log", *options]
        items = self.folder / "items"
        items.write_text("".join(f"{number}\n" for number in range(ITEMS)))
        with items.open("rb") as source, (self.folder / "err").open("ab") as err:
            return self.exo_gpu(*words, "sh item.sh {}", stdin=source, stderr=err)

    def started(self) -> int:
        path = self.folder / "started"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def has_had_its_troubles(self) -> bool:
        """Half of the items began, and those that make trouble have come to an end once."""
        if self.started() <= ITEMS // 2:
            return False
        return {one.item for one in self.tries()} >= set(TROUBLES)

    def tries(self) -> list[ItemEnded]:
        return [one for one in tries_of(self.journal) if isinstance(one, ItemEnded)]

    def begun(self) -> Counter[int]:
        """How often the journal says that an item was to begin."""
        with self.journal.open("rb") as file:
            records = [record for _, _, record in read_records(file.fileno())]
        return Counter(one.item for one in records if isinstance(one, ItemBegun))

    def leases(self) -> list[dict]:
        with self.exo_gpu("leases", "--json", stdout=subprocess.PIPE) as asked:
            return json.loads(asked.communicate()[0])["leases"]

    def nothing_is_left(self) -> None:
        """No process of it lives, and no lease is held.

        A device that is lost cannot say that its memory is back: a lease there that has ended is
        struck out after a while.

        Raises:
            AssertionError: naming what is left.

        """
        wait_until(lambda: not marked(self.mark), "the end of every process")
        assert [one for one in self.leases() if one["ended_seconds"] is None] == []

    def successes(self) -> Counter[int]:
        return Counter(one.item for one in self.tries() if one.succeeded)


def _device(number: int) -> dict:
    return {
        "device_id": f"cuda:{number}",
        "name": f"Card {number}",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "hardware_id": f"GPU-{number}",
        "memory_bytes": 8 * GIB,
        "sample": {"memory_used_bytes": 0, "memory_total_bytes": 8 * GIB},
    }


def _write(path: Path, devices: list[dict]) -> None:
    path.write_text(json.dumps({"devices": devices}))


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
    first = {item: next(one.cause for one in tries if one.item == item) for item in TROUBLES}
    assert "device lost" in first[LOST]
    assert "MemoryError" in first[LIMITED]
    assert "longer than 3 s" in first[HANGING]
    if run.cgroup is not None:
        assert "for want of memory" in first[KILLED_FOR_MEMORY]
    lost = (run.folder / "lost").read_text().strip().replace("GPU-", "cuda:")
    (success,) = (one for one in tries if one.item == LOST and one.succeeded)
    assert success.device_id != lost
    starts = Counter(map(int, (run.folder / "started").read_text().split()))
    told = Counter(one.item for one in tries if one.attempt > 1) + run.begun()
    assert {item for item, count in starts.items() if count > told[item]} == set()
    assert story_of(run.journal).summary.started_again >= sum(n > 1 for n in run.begun().values())


def test_the_kernels_killer_is_known_by_its_counter() -> None:
    """Rule: SIGKILL while the recorded counter goes up is memory; without a step it is somebody's."""
    before, after = "low 0\nmax 3\noom 1\noom_kill 1\n", "low 0\nmax 9\noom 2\noom_kill 2\n"
    step = (oom_kills(after) or 0) - (oom_kills(before) or 0)
    assert step == 1
    killed = classify(Evidence(returncode=-signal.SIGKILL, oom_kills=step))
    assert killed.cause is Cause.OUT_OF_HOST_MEMORY
    by_hand = classify(Evidence(returncode=-signal.SIGKILL, oom_kills=0))
    assert by_hand.cause is Cause.KILLED
