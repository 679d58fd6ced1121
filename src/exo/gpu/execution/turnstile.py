"""One at a time through the ledger, in the order in which they came."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.execution.bells import BellFolder
from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

    from exo.gpu.execution.bells import Bell

# A transaction takes well under a millisecond; whoever holds the turnstile for longer than this
# was stopped, as by Ctrl-Z.
DEADLINE_SECONDS = 10.0

# Who runs may overtake those who have yet to wake up, for so long after it called one of them:
# a process that has just been through is through again in a fraction of the time.
OVERTAKING_SECONDS = 0.001

# Whoever died between being called and coming through called nobody else; so look now and then,
# and who was called and overtaken often.
RECHECK_SECONDS = 0.05
CALLED_RECHECK_SECONDS = 0.001


class Turnstile:
    """A file that the process whose turn it is has locked; the kernel frees it at its death.

    SQLite's own wait for a lock is a series of naps, which under many processes grow long and
    forget who came first, and a wait in ``flock`` knows no deadline, and lets those who run
    overtake those who have yet to wake up. So who finds the turnstile taken draws a ticket, a
    name in a folder, and sleeps by its bell; who goes through rings for the lowest ticket.
    Tickets and bells are hints, which anybody may remove: only the lock decides.
    """

    def __init__(
        self, path: Path, tickets: Path, bells: Path, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Use the file at ``path``, which exists and need only be readable.

        Raises:
            OSError: when it, or the folder for tickets, cannot be opened.

        """
        self._path = path
        self._deadline_seconds = deadline_seconds
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._tickets = BellFolder(tickets)
        self._bells = BellFolder(bells)
        self._name = os.urandom(8).hex()
        self._bell: Bell | None = None
        self._since = self._left = 0.0

    def close(self) -> None:
        """Close the files; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        self._bells.close()
        self._tickets.close()

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait for this process's turn, and hold it for the block.

        Raises:
            StoreError: when another process kept it beyond the deadline, naming that one.

        """
        if self._descriptor < 0:
            raise StoreError(f"{self._path}: the lease store is closed")
        if self._must_queue() or not self._try():
            self._queue_up()
            self._since = time.monotonic()
            self._call_next()
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._left = time.monotonic()
            if self._left - self._since > OVERTAKING_SECONDS:
                self._call_next()

    def _queue_up(self) -> None:
        if self._bell is None:
            self._bell = self._bells.hang(self._name)
        # All processes of the machine share the clock; so the names sort by time of arrival.
        ticket = f"{time.monotonic_ns():020d} {self._name}"
        self._tickets.mark(ticket)
        try:
            if not self._wait(ticket):
                raise StoreError(self._complaint())
        finally:
            self._tickets.remove(ticket)

    def _wait(self, ticket: str) -> bool:
        assert self._bell is not None, "hung before the ticket was drawn"
        # Whoever went through before the ticket was there did not see it.
        first = self._first()
        if first in {ticket, ""}:
            if self._try():
                return True
        else:
            self._bells.ring((_bell_of(first),))
        ends = time.monotonic() + self._deadline_seconds
        recheck = RECHECK_SECONDS
        while (left := ends - time.monotonic()) > 0:
            if self._bell.wait(min(left, recheck)):
                recheck = CALLED_RECHECK_SECONDS
            if self._try():
                return True
        return False

    def _try(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _first(self) -> str:
        return min(self._tickets.names(), default="")

    def _must_queue(self) -> bool:
        now = time.monotonic()
        if now - self._left > OVERTAKING_SECONDS:
            self._since = now
            return False
        return now - self._since > OVERTAKING_SECONDS and self._first() != ""

    def _call_next(self) -> None:
        while first := self._first():
            if self._bells.ring((_bell_of(first),)):
                return
            self._tickets.remove(first)  # of one who is gone

    def _complaint(self) -> str:
        holder = holder_of(self._path)
        who = f"process {holder}" if holder else "another process"
        return (
            f"{who} has kept the lease store at {self._path.parent} locked for "
            f"{self._deadline_seconds:g} s: let it go on (fg, kill -CONT), or end it"
        )


def _bell_of(ticket: str) -> str:
    return ticket.partition(" ")[2]


def holder_of(path: Path, locks: Path = Path("/proc/locks")) -> int | None:
    """The process that has locked the file, as ``lslocks`` shows it, or None where not known."""
    with suppress(OSError, ValueError):
        status = path.stat()
        inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in locks.read_text().splitlines():
            fields = line.split()
            # "1: FLOCK ADVISORY WRITE 4711 00:19:99 0 EOF"; who only waits has "->" in front.
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == inode:
                return int(fields[4])
    return None
