"""Leases of all processes of this machine, one file per boot; kernel locks say who lives."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from exo.gpu.database import immediate, open_shared
from exo.gpu.execution.state_directory import StorePlace, boot_id, prepare
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA = "CREATE TABLE IF NOT EXISTS leases (lease_id TEXT PRIMARY KEY, record TEXT NOT NULL)"

Answer = TypeVar("Answer")


class Taken(msgspec.Struct, Generic[Answer]):
    """What was decided, and the leases that were taken with it."""

    answer: Answer
    leases: tuple[HeldLease, ...]


class HeldLease:
    """A lease that this process holds through an open, locked file.

    Hand :attr:`lock_fd` to every process started under the lease (``pass_fds``): the kernel keeps
    the lock until the last of them has ended, whatever becomes of this one.
    """

    def __init__(self, store: LeaseStore, lease: Lease, lock_fd: int) -> None:
        self.lease = lease
        self.lock_fd = lock_fd
        self._store = store

    def release(self) -> None:
        """Let go; harmless twice. The lease ends now, or with the last process under it."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1
            self._store.live()


class LeaseStore:
    """The leases of one machine since it booted, shared by all its users.

    Leases are cooperative: they keep those who ask from colliding, and stop nobody else.
    """

    def __init__(self, place: StorePlace) -> None:
        """Open the store, making it where it is missing.

        Raises:
            StoreError: naming the place and the reason.

        """
        self.place = place
        directory = prepare(place)
        self._locks = directory / "locks"
        # Threads of this process share the connection; other processes wait in SQLite.
        self._turn = threading.Lock()
        self._connection = open_shared(directory / f"leases-{boot_id()}.sqlite", SCHEMA)

    def close(self) -> None:
        """Close the file; leases that are held stay held."""
        self._connection.close()

    def live(self) -> tuple[Lease, ...]:
        """All leases under which a process still works; the others are struck out."""
        with self._turn, immediate(self._connection):
            return self._strike_out()

    def take(
        self, decide: Callable[[tuple[Lease, ...]], tuple[Answer, Sequence[Lease]]]
    ) -> Taken[Answer]:
        """Read the ledger, decide and write the new leases as one indivisible step.

        ``decide`` gets the live leases and returns its answer with the leases to take (their
        ``lease_id``, holder's pid, user, command and time are filled in here). It runs while all
        other processes wait, so it must not block.
        """
        held: list[HeldLease] = []
        try:
            with self._turn, immediate(self._connection):
                answer, wanted = decide(self._strike_out())
                for lease in wanted:
                    held.append(self._lock(_signed(lease)))
                    self._connection.execute(
                        "INSERT INTO leases VALUES (?, ?)",
                        (held[-1].lease.lease_id, held[-1].lease.to_json()),
                    )
        except BaseException:
            for lease in held:
                os.close(lease.lock_fd)
                self._lock_path(lease.lease.lease_id).unlink(missing_ok=True)
            raise
        return Taken(answer, tuple(held))

    def _lock_path(self, lease_id: str) -> Path:
        return self._locks / lease_id

    def _lock(self, lease: Lease) -> HeldLease:
        path = self._lock_path(lease.lease_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.chmod(0o666)
        except OSError as error:
            raise StoreError(f"{path} cannot be locked: {error}") from error
        return HeldLease(self, lease, descriptor)

    def _strike_out(self) -> tuple[Lease, ...]:
        alive: list[Lease] = []
        for lease_id, record in self._connection.execute("SELECT * FROM leases").fetchall():
            if self._is_alive(lease_id):
                alive.append(Lease.from_json(record))
                continue
            self._connection.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))
            try:
                self._lock_path(lease_id).unlink(missing_ok=True)
            except OSError:
                continue  # another user's file in a sticky directory: an empty file stays
        return tuple(alive)

    def _is_alive(self, lease_id: str) -> bool:
        try:
            descriptor = os.open(self._lock_path(lease_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Holders lock exclusively; those who only look share, so that two never see each other.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _signed(lease: Lease) -> Lease:
    return msgspec.structs.replace(
        lease,
        lease_id=uuid.uuid4().hex[:12],
        pid=os.getpid(),
        user=_user(),
        command=" ".join(sys.argv)[:200],
        taken_at=time.time(),
    )


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
