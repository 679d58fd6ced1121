"""A job of two thousand commands on three scripted devices, four of which make trouble once."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from pathlib import Path

from monkey import MARK, marked, wait_until

from exo.gpu.coordination.jobs import tries_of
from exo.gpu.execution.journal import read_records
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
