"""``exo-gpu map``: its rate beside GNU parallel's, and its memory for a million lines."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from zlib import crc32

from results import Result, report

from exo.gpu.execution.journal import encode_record
from exo.gpu.vocabulary.journal import ItemEnded, JobBegun, JobKind

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATE = "true # {}"
SLOTS = 2

RATE_TARGET = 1.0
MEMORY_TARGET_MB = 150.0

# Beside the million lines that are read and looked up, so many commands are really run.
LINES, RUN = 1_000_000, 20_000

# Linux counts the memory of whoever starts a program to its peak: this one is small.
_WEIGH = """
import os, sys
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
os.write(out, str(usage.ru_maxrss).encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""


def results(quick: bool = False) -> list[Result]:
    """Both comparisons; ``quick`` runs less of each.

    Raises:
        FileNotFoundError: when GNU parallel is not installed.

    """
    items, runs = (200, 1) if quick else (1000, 5)
    lines, run = (20_000, 200) if quick else (LINES, RUN)
    with tempfile.TemporaryDirectory() as name:
        machine = Machine(Path(name))
        return [machine.rate(items, runs), machine.memory(lines, run)]


class Machine:
    """Two scripted devices of one slot each, and folders of their own for all that is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        devices = [
            {
                "device_id": f"cuda:{number}",
                "name": "a card",
                "vendor": "NVIDIA",
                "backend": "fake",
                "runtime": "cuda",
                "hardware_id": f"GPU-{number}",
                "memory_bytes": 8 * 2**30,
            }
            for number in range(SLOTS)
        ]
        (folder / "devices.json").write_text(json.dumps({"devices": devices}))
        self._environ = os.environ | {
            "EXO_GPU_FAKE": str(folder / "devices.json"),
            "EXO_GPU_STATE": str(folder / "state"),
            "EXO_GPU_REGISTRY": str(folder / "registry.json"),
            "EXO_GPU_JOBS": str(folder / "jobs"),
            "EXO_GPU_CONFIG": os.devnull,
        }

    def rate(self, items: int, runs: int) -> Result:
        """Commands a second, the start of both programs included, leases and journal on."""
        peer = shutil.which("parallel")
        if peer is None:
            raise FileNotFoundError("no GNU parallel here: apt-get install parallel")
        lines = self._lines(items)
        own: list[float] = []
        theirs: list[float] = []
        for _ in range(runs):
            own.append(items / self._seconds(self._map("--"), lines))
            theirs.append(items / self._seconds([peer, f"-j{SLOTS}", TEMPLATE], lines))
        ours, others = median(own), median(theirs)
        metric = f"commands/s, {items} of 'true', {SLOTS} slots"
        return Result(
            metric, ours, others, "GNU parallel", _version(peer), ours / others, RATE_TARGET,
            "higher", runs,
        )  # fmt: skip

    def memory(self, lines: int, run: int) -> Result:
        """Peak memory of our process, in MB of 10^6 bytes, for lines all but ``run`` of which have
        succeeded before; with as many to run as there are lines, no journal is gone on with.
        """
        source = self._lines(lines)
        log = self._folder / "log"
        resume: list[str] = []
        if run < lines:
            with log.with_name("log.journal").open("wb") as journal:
                journal.writelines(_journal(lines - run, lines))
            resume = ["--resume"]
        peak = self._peak_bytes(self._map("--joblog", str(log), *resume), source)
        metric = f"peak MB of the parent, {lines} lines, {run} run"
        megabytes = peak / 1e6
        return Result(
            metric, megabytes, MEMORY_TARGET_MB, "the budget", "", megabytes, MEMORY_TARGET_MB,
            "lower", 1,
        )  # fmt: skip

    def _map(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "exo.gpu", "map", *options, TEMPLATE]

    def _lines(self, count: int) -> Path:
        path = self._folder / f"lines-{count}"
        if not path.exists():
            path.write_text("".join(f"{number}\n" for number in range(1, count + 1)))
        return path

    def _seconds(self, command: list[str], source: Path) -> float:
        started = time.perf_counter()
        with source.open() as stdin:
            subprocess.run(
                command, stdin=stdin, env=self._environ, check=True, stdout=subprocess.DEVNULL
            )
        return time.perf_counter() - started

    def _peak_bytes(self, command: list[str], source: Path) -> int:
        """The peak of the largest process of all, which is ours by far."""
        with source.open() as stdin:
            done = subprocess.run(
                [sys.executable, "-S", "-c", _WEIGH, *command],
                stdin=stdin,
                env=self._environ,
                stdout=subprocess.PIPE,
                check=True,
            )
        return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def _journal(succeeded: int, total: int) -> Iterator[bytes]:
    """The records of a job of which so many items have succeeded."""
    yield encode_record(
        JobBegun(
            job_id="20260301-140502-3f9a",
            kind=JobKind.COMMANDS,
            templates={"": TEMPLATE},
            total=total,
            started_at=0.0,
            pid=1,
        )
    )
    for item in range(succeeded):
        digest = crc32(str(item + 1).encode())
        yield encode_record(
            ItemEnded(item, "succeeded", "", "cuda:0", 0, 1, True, 0.0, 0.0, 0, None, digest)
        )


def _version(peer: str) -> str:
    done = subprocess.run([peer, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"GNU parallel (\S+)", done.stdout)
    return found[1] if found else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of each")
    parser.add_argument("--whole", action="store_true", help="also run all of a million commands")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    try:
        rows = results(options.quick)
        if options.whole:
            with tempfile.TemporaryDirectory() as name:
                rows.append(Machine(Path(name)).memory(LINES, LINES))
    except FileNotFoundError as error:
        print(f"dispatch_commands: {error}", file=sys.stderr)
        return 1
    return report("dispatch_commands", rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
