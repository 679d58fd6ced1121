"""One at a time through the ledger: a queue in the kernel instead of everybody's polling."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

# A transaction takes well under a millisecond; whoever holds the turnstile for longer than this
# was stopped, as by Ctrl-Z.
DEADLINE_SECONDS = 10.0


class Turnstile:
    """A file that the process whose turn it is has locked; the kernel frees it at its death.

    SQLite's own wait for a lock is a series of naps, which under many processes grow long and
    forget who came first. Here waiters sleep in the kernel until the one before them is through.
    """

    def __init__(self, path: Path, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Use the file at ``path``, which exists and need only be readable."""
        self._path = path
        self._deadline_seconds = deadline_seconds
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait for this process's turn, and hold it for the block.

        Raises:
            StoreError: when another process kept it beyond the deadline, naming that one.

        """
        if self._descriptor < 0:
            raise StoreError(f"{self._path}: the lease store is closed")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = self._descriptor
        except BlockingIOError:
            locked = self._queue_up()
        try:
            yield
        finally:
            if locked == self._descriptor:
                fcntl.flock(locked, fcntl.LOCK_UN)
            else:
                os.close(locked)

    def _queue_up(self) -> int:
        """A locked descriptor of its own, since a wait in the kernel knows no deadline."""
        call = _BlockingLock(self._path)
        try:
            if call.done.wait(self._deadline_seconds) and call.descriptor >= 0:
                return call.descriptor
        except BaseException:
            call.abandon()
            raise
        call.abandon()
        holder = holder_of(self._path)
        who = f"process {holder}" if holder else "another process"
        raise StoreError(
            f"{who} has kept the lease store at {self._path.parent} locked for "
            f"{self._deadline_seconds:g} s: let it go on (fg, kill -CONT), or end it"
        )


class _BlockingLock:
    """One wait in the kernel on a daemon thread; a lock that comes after all goes back at once."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.done = threading.Event()
        self._abandoned = False
        self._either = threading.Lock()
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        threading.Thread(
            target=self._run, args=(opened,), name="exo-gpu-turnstile", daemon=True
        ).start()

    def abandon(self) -> None:
        with self._either:
            self._abandoned = True
            if self.descriptor >= 0:
                os.close(self.descriptor)

    def _run(self, opened: int) -> None:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:
            os.close(opened)
            self.done.set()
            return
        with self._either:
            if self._abandoned:
                os.close(opened)
            else:
                self.descriptor = opened
        self.done.set()


def holder_of(path: Path, locks: Path = Path("/proc/locks")) -> int | None:
    """The process that has locked the file, as ``lslocks`` shows it, or None where not known."""
    try:
        status = path.stat()
        inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in locks.read_text().splitlines():
            fields = line.split()
            # "1: FLOCK ADVISORY WRITE 4711 00:19:99 0 EOF"; who only waits has "->" in front.
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == inode:
                return int(fields[4])
    except (OSError, ValueError):
        return None
    return None
