"""What does the damage, and what is left of a program afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

MARK = "EXO_CHAOS_MARK"
"""A variable that everything inherits which a program under test starts."""

# How long what must come may take on a machine that does much else.
PATIENCE_SECONDS = 120.0


def marked(mark: str) -> list[int]:
    """The processes that bear the mark and are no zombies, whoever their parent is by now."""
    wanted = f"{MARK}={mark}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Look until it has happened.

    Raises:
        AssertionError: naming it, where it does not come.

    """
    ends = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < ends, f"{what} did not come within {PATIENCE_SECONDS:g} s"
        time.sleep(0.02)


class Monkey:
    """Kills what a program started, at random, and once the program itself.

    ``prey`` is in the command line of a worker, and ``spared`` at the end of those that have
    trouble enough. ``at_work``, where given, says whether a process has begun to work: most of those
    that have not are let be, since no slot starts processes for ever that are killed at once.
    ``seed`` is in the message of a failed test, so that it can be tried again.
    """

    def __init__(
        self,
        prey: str,
        *,
        pause_seconds: tuple[float, float],
        seed: int,
        spared: tuple[str, ...] = (),
        at_work: Callable[[int], bool] | None = None,
    ) -> None:
        self.killed_workers = self.killed_groups = 0
        self._prey = prey
        self._spared = spared
        self._at_work = at_work
        self._pause_seconds = pause_seconds
        self._random = random.Random(seed)

    @contextlib.contextmanager
    def at(self, pid: int) -> Iterator[None]:
        """Kill workers of this program for as long as the block lasts."""
        over = threading.Event()
        thread = threading.Thread(target=self._rage, args=(pid, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _rage(self, pid: int, over: threading.Event) -> None:
        while not over.wait(self._random.uniform(*self._pause_seconds)):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                children = psutil.Process(pid).children(recursive=True)
                workers = [child for child in children if self._is_prey(child)]
                if workers:
                    self._kill(self._random.choice(workers), os.getpgid(pid))

    def _is_prey(self, process: psutil.Process) -> bool:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            return False
        if self._prey not in line or line.endswith(self._spared):
            return False
        idle = self._at_work is not None and not self._at_work(process.pid)
        return not idle or self._random.random() < 0.1

    def _kill(self, worker: psutil.Process, parents_group: int) -> None:
        group = os.getpgid(worker.pid)
        if group != parents_group and self._random.random() < 0.5:
            os.killpg(group, signal.SIGKILL)
            self.killed_groups += 1
        else:
            os.kill(worker.pid, signal.SIGKILL)
            self.killed_workers += 1


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """A child cgroup with a limit, to which a process may move itself; None where none can be made."""
    made = _make_cgroup(limit_bytes)
    try:
        yield made
    finally:
        if made is not None:
            with contextlib.suppress(OSError):
                made.rmdir()


def _make_cgroup(limit_bytes: int) -> Path | None:
    name = f"exo-chaos-{secrets.token_hex(4)}"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, place = line.split(":", 2)
        root, limit = {
            "": (Path("/sys/fs/cgroup"), "memory.max"),
            "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        }.get(controllers, (None, ""))
        if root is None:
            continue
        folder = root / place.strip("/") / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(limit_bytes))
        except OSError:  # the controller is not handed down to here
            folder.rmdir()
            continue
        return folder
    return None
