"""Leases of all processes of this machine, one ledger per boot; kernel locks say who lives."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from exo.gpu.database import immediate, open_shared
from exo.gpu.execution.bells import BellFolder
from exo.gpu.execution.ended_leases import EndedLeases
from exo.gpu.execution.held import HeldLease, HeldPlace
from exo.gpu.execution.ledger_book import SCHEMA, Book, Caches
from exo.gpu.execution.lock_files import LockFolder
from exo.gpu.execution.state_directory import StorePlace, boot_id, prepare
from exo.gpu.execution.turnstile import DEADLINE_SECONDS, Turnstile
from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from exo.gpu.database import Connection
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.execution.lease_store")

LEDGER = "ledger.sqlite"

# In a sticky folder nobody removes what is another's. Hints are for anybody to clear away.
FOLDERS = {"locks": 0o1777, "bells": 0o1777, "ended": 0o777, "tickets": 0o777, "queue": 0o777}

# Enough to recognise one's own program by.
COMMAND_LENGTH = 200

# Whom a release wakes at once; everybody polls besides, and who is served wakes the next ones.
WOKEN_AT_ONCE = 8


class Signature:
    """What this process writes under its leases."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._user: tuple[int, str] = (-1, "")

    def now(self) -> dict[str, Any]:
        """Pid, user and command, and the time on the wall."""
        if self._user[0] != os.geteuid():
            self._user = (os.geteuid(), _user())
        return {
            "pid": os.getpid(),
            "user": self._user[1],
            "command": " ".join(sys.argv)[:COMMAND_LENGTH],
            "wall": self._wall(),
        }


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class LeaseStore:
    """The leases of one machine since it booted, and who waits for one; shared by all its users.

    Leases are cooperative: they keep those who ask from colliding, and stop nobody else.
    ``order`` puts waiters in the order in which they are to be woken.
    """

    def __init__(
        self,
        place: StorePlace,
        *,
        order: Callable[[Sequence[Waiter]], Sequence[Waiter]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Open the store, making it where it is missing.

        Raises:
            StoreError: naming the place, the reason and what to do.

        """
        self.place = place
        self._order = order
        self._clock = clock
        self._signature = Signature(wall)
        self._deadline_seconds = deadline_seconds
        self._turn = threading.Lock()  # between threads of this process
        self._open()

    def _open(self) -> None:
        home = prepare(self.place, f"boot-{boot_id()}", _furnish)
        try:
            self._pid = os.getpid()
            self._turnstile = Turnstile(
                home / "turn",
                home / "tickets",
                home / "queue",
                deadline_seconds=self._deadline_seconds,
            )
            self.locks = LockFolder(home / "locks")
            self.bells = BellFolder(home / "bells")
            self._ended = EndedLeases(home / "ended")
        except OSError as error:
            raise StoreError(_advice(home, str(error))) from error
        self._home = home
        self._caches = Caches()
        self._swept = False
        with self._turnstile.turn(), _advising(home):
            self._connection: Connection = open_shared(home / LEDGER, SCHEMA)

    def close(self) -> None:
        """Close the files; leases that are held stay held. Harmless twice."""
        self._connection.close()
        self._turnstile.close()
        self.locks.close()
        self.bells.close()
        self._ended.close()

    @contextmanager
    def transaction(self) -> Generator[Book]:
        """The ledger, while no other process can read or change it; so do not block within.

        What is changed in the book takes effect together at the end of the block, or not at all
        when it raises.

        Raises:
            StoreError: when the ledger cannot be had or is damaged, saying what to do.

        """
        with self._turn:
            if self._pid != os.getpid():
                self._open()  # a fork: nothing of the parent's may be used here
            with self._turnstile.turn(), _advising(self._home), immediate(self._connection):
                book = self._new_book()
                try:
                    book.read(sweep=not self._swept)
                    yield book
                except BaseException:
                    book.undo()
                    raise
            self._swept = True
            self.bells.ring(book.woken)
            book.clear_away()
        if book.gave_back and book.waiters:
            self.bells.ring(one.waiter_id for one in self._order(book.waiters)[:WOKEN_AT_ONCE])

    def live(self) -> tuple[Lease, ...]:
        """All leases under which a process still works, or whose memory is still awaited."""
        with self.transaction() as book:
            book.prune()
            return book.leases

    def line_up(self, request: Request, **facts: Any) -> HeldPlace:
        """Take the last place in the line; ``facts`` are further fields of the ``Waiter``."""
        with self.transaction() as book:
            waiter, lock_fd = book.enqueue(request, facts)
        bell = self.bells.hang(waiter.waiter_id)
        return HeldPlace(waiter, lock_fd, bell, self._leave)

    def _new_book(self) -> Book:
        return Book(
            self._connection,
            self.locks,
            self.bells,
            self._ended,
            self._caches,
            now_seconds=self._clock(),
            signature=self._signature.now(),
            hold=lambda lease, lock_fd: HeldLease(lease, lock_fd, self._release),
        )

    def _release(self, lease_id: str) -> None:
        """Leave word that the lease has ended; the next transaction strikes it out.

        A turn at the ledger for every release would double the crowd before it.
        """
        if self.locks.is_held(lease_id):
            return
        self.locks.remove(lease_id)
        self._ended.leave_word(lease_id, self._clock())
        if self.bells.names():  # who hangs a bell looks at the ledger after that
            with self.transaction():
                logger.debug("lease %s has ended, and somebody waits", lease_id)

    def _leave(self, waiter_id: str) -> None:
        with self.transaction() as book:
            book.dequeue(waiter_id)


def _furnish(fresh: Path) -> None:
    """All that a store consists of, in a directory of this user's own."""
    for name, mode in FOLDERS.items():
        (fresh / name).mkdir()
        (fresh / name).chmod(mode)
    (fresh / "turn").touch()
    open_shared(fresh / LEDGER, SCHEMA).close()
    for path in fresh.iterdir():
        if path.is_file():
            path.chmod(0o666)


@contextmanager
def _advising(home: Path) -> Generator[None]:
    """Whatever is wrong with the ledger, who reads of it learns what to do."""
    try:
        yield
    except StoreError as error:
        if "locked" in str(error) or str(home / "locks") in str(error):
            raise  # who keeps it, or the file that could not be made, is named already
        raise StoreError(_advice(home, str(error))) from error


def _advice(home: Path, reason: str) -> str:
    return (
        f"the lease store in {home} is of no use: {reason}. Nobody can tell any more what is "
        "leased: end the work that holds leases, then delete that directory; it is made anew"
    )
