"""The ledger as one transaction sees it: leases, the line, and what becomes of the dead."""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.database import Connection
    from exo.gpu.execution.bells import BellFolder
    from exo.gpu.execution.ended_leases import EndedLeases
    from exo.gpu.execution.held import HeldLease
    from exo.gpu.execution.lock_files import LockFolder
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.execution.ledger_book")

# In the order of arrival. AUTOINCREMENT: a place in the line is never given twice.
SCHEMA = """
CREATE TABLE IF NOT EXISTS leases
    (number INTEGER PRIMARY KEY, name TEXT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS waiters
    (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, record BLOB NOT NULL);
"""

# How long the memory of a lease that has ended may take to come back. Drivers need milliseconds
# to a second or so; beyond this somebody holds on to it, and it counts as that one's.
SETTLE_SECONDS = 10.0

# A waiter that is past its own deadline by this much was stopped, and holds up the others.
GRACE_SECONDS = 5.0

# Leases looked at in each transaction whether they live, in turn: 3 us each. All are looked at
# before anybody is refused.
LOOKED_AT = 2

Record = TypeVar("Record", Lease, Waiter)


class RecordCache(Generic[Record]):
    """Records of one table, decoded once: most are the same in the next transaction."""

    def __init__(self, kind: type[Record], table: str) -> None:
        self.table = table
        self._decoder = msgspec.json.Decoder(kind)
        self._known: dict[int, tuple[bytes, Record]] = {}

    def read(
        self, connection: Connection, is_held: Callable[[str], bool]
    ) -> tuple[dict[int, Record], list[tuple[int, str]]]:
        """All records by number, and number and name of those that are to be struck out.

        Raises:
            StoreError: for a record that says nothing, of somebody who lives.

        """
        known: dict[int, tuple[bytes, Record]] = {}
        unreadable: list[tuple[int, str]] = []
        everything = f"SELECT number, name, record FROM {self.table}"  # noqa: S608 - our own name
        for number, name, raw in connection.execute(everything):
            cached = self._known.get(number)
            if cached is not None and cached[0] == raw:
                known[number] = cached
                continue
            try:
                known[number] = (raw, self._decoder.decode(raw))
            except (msgspec.MsgspecError, TypeError) as error:
                if is_held(name):
                    reason = f"the record of {name}, which is held, is damaged: {error}"
                    raise StoreError(reason) from error
                unreadable.append((number, name))
        self._known = known
        return {number: record for number, (_, record) in known.items()}, unreadable


class Caches:
    """What a store remembers between transactions."""

    def __init__(self) -> None:
        self.leases = RecordCache(Lease, "leases")
        self.waiters = RecordCache(Waiter, "waiters")
        self.looked = 0


class Book:
    """Leases and waiters within one transaction; all changes of the ledger go through here."""

    def __init__(
        self,
        connection: Connection,
        locks: LockFolder,
        bells: BellFolder,
        ended: EndedLeases,
        caches: Caches,
        *,
        now_seconds: float,
        signature: dict[str, Any],
        hold: Callable[[Lease, int], HeldLease],
    ) -> None:
        self.now_seconds = now_seconds
        """The moment of the transaction, on the monotonic clock."""
        self.gave_back = False
        """True once something was given back, so that waiters are to be woken."""
        self._connection = connection
        self._locks = locks
        self._bells = bells
        self._ended = ended
        self._caches = caches
        self._signature = signature
        self._hold = hold
        self._leases: dict[int, Lease] = {}
        self._waiters: dict[int, Waiter] = {}
        self._made: list[tuple[str, int]] = []
        self._gone: list[str] = []
        self._heard: list[str] = []
        self.woken: list[str] = []
        """Waiters that are to be woken whether or not anything was given back."""

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All leases as they are recorded, the oldest first; a few may be dead already."""
        return tuple(self._leases.values())

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """The line, in the order of arrival."""
        return tuple(self._waiters.values())

    def read(self, *, sweep: bool) -> None:
        """Read the ledger, and strike out what is over by the clock."""
        is_held = self._locks.is_held
        self._leases, bad_leases = self._caches.leases.read(self._connection, is_held)
        self._waiters, bad_waiters = self._caches.waiters.read(self._connection, is_held)
        for number, name in bad_leases:
            self._delete("leases", number, name)
        for number, name in bad_waiters:
            self._delete("waiters", number, name)
        for word, lease_id, at_seconds in self._ended.words():
            self.end(lease_id, min(at_seconds, self.now_seconds))
            self._heard.append(word)
        for lease in self.leases:
            if _over(lease, self.now_seconds):
                if not lease.settling:
                    logger.info("lease %s of %s has expired", lease.lease_id, lease.holder)
                self.drop(lease.lease_id)
        for waiter in self.waiters:
            limit = waiter.gives_up_seconds
            if limit is not None and self.now_seconds > limit + GRACE_SECONDS:
                self.dequeue(waiter.waiter_id)
        if sweep:
            self._sweep()
        self._look()

    def prune(self) -> bool:
        """Strike out all under whom nobody works any more; whether there was one."""
        before = (len(self._waiters), sum(not lease.settling for lease in self._leases.values()))
        for lease in self.leases:
            self.end(lease.lease_id)
        for waiter in self.waiters:
            if not self._locks.is_held(waiter.waiter_id):
                self.dequeue(waiter.waiter_id)
        after = (len(self._waiters), sum(not lease.settling for lease in self._leases.values()))
        return before != after

    def add(self, lease: Lease, lasts_seconds: float | None = None) -> HeldLease:
        """Take a lease; its id, pid, user, command and times are filled in here."""
        expires = None if lasts_seconds is None else self.now_seconds + lasts_seconds
        mark = self._signature
        signed = msgspec.structs.replace(
            lease,
            lease_id=secrets.token_hex(6),
            pid=mark["pid"],
            user=mark["user"],
            command=mark["command"],
            taken_at=mark["wall"],
            granted_seconds=self.now_seconds,
            expires_seconds=expires,
        )
        descriptor = self._lock(signed.lease_id)
        number = self._insert("leases", signed.lease_id, signed)
        self._leases[number] = signed
        return self._hold(signed, descriptor)

    def end(self, lease_id: str, at_seconds: float | None = None) -> None:
        """The lease is over where nobody holds it; its memory may still have to come back.

        ``at_seconds`` is when it ended, as far as is known; never before it was granted.
        """
        number = self._number(lease_id)
        if number is None or self._locks.is_held(lease_id):
            return
        lease = self._leases[number]
        if lease.settling:
            return
        if awaits_memory(lease):
            known = self.now_seconds if at_seconds is None else at_seconds
            at = max(known, lease.granted_seconds)
            ended = msgspec.structs.replace(lease, ended_seconds=at)
            self._update(number, ended)
            self._gone.append(lease_id)
            self.gave_back = True
        else:
            self.drop(lease_id)

    def drop(self, lease_id: str) -> None:
        """Strike out a lease whoever works under it; harmless twice."""
        number = self._number(lease_id)
        if number is not None:
            del self._leases[number]
            self._delete("leases", number, lease_id)

    def note(self, lease_id: str, seen_bytes: int | None, seen_pids: Sequence[int]) -> None:
        """Write down what the processes of a lease were seen to hold."""
        number = self._number(lease_id)
        if number is not None:
            lease = self._leases[number]
            fresh = {"seen_bytes": seen_bytes, "seen_pids": tuple(seen_pids)}
            self._update(number, msgspec.structs.replace(lease, **fresh))

    def enqueue(self, request: Request, facts: dict[str, Any]) -> tuple[Waiter, int]:
        """Put a request at the end of the line; the waiter, and the descriptor of its lock."""
        mark = self._signature
        waiter = Waiter(
            waiter_id=secrets.token_hex(6),
            request=request,
            arrived_seconds=self.now_seconds,
            pid=mark["pid"],
            user=mark["user"],
            command=mark["command"],
            waiting_since=mark["wall"],
            **facts,
        )
        descriptor = self._lock(waiter.waiter_id)
        number = self._insert("waiters", waiter.waiter_id, waiter)
        waiter = msgspec.structs.replace(waiter, number=number)
        self.keep_place(waiter)
        return waiter, descriptor

    def keep_place(self, waiter: Waiter) -> None:
        """Write a waiter anew, at the same place."""
        self._connection.execute(
            "UPDATE waiters SET record = ? WHERE number = ?",
            (msgspec.json.encode(waiter), waiter.number),
        )
        self._waiters[waiter.number] = waiter

    def dequeue(self, waiter_id: str) -> None:
        """Take a waiter out of the line; harmless twice."""
        for number, waiter in self._waiters.items():
            if waiter.waiter_id == waiter_id:
                del self._waiters[number]
                self._delete("waiters", number, waiter_id)
                return

    def undo(self) -> None:
        """The transaction failed: nothing that was made for it stays."""
        for name, descriptor in self._made:
            os.close(descriptor)
            self._locks.remove(name)

    def clear_away(self) -> None:
        """The transaction is done: the files of those who are gone can go."""
        for name in self._gone:
            self._locks.remove(name)
            self._bells.remove(name)
        for word in self._heard:
            self._ended.remove(word)

    def _look(self) -> None:
        live = [lease.lease_id for lease in self._leases.values() if not lease.settling]
        for step in range(min(LOOKED_AT, len(live))):
            self.end(live[(self._caches.looked + step) % len(live)])
        self._caches.looked += LOOKED_AT

    def _sweep(self) -> None:
        """Files of those who died between making one and the end of their transaction."""
        known = {lease.lease_id for lease in self._leases.values()}
        known |= {waiter.waiter_id for waiter in self._waiters.values()}
        for name in self._locks.names():
            if name not in known and not self._locks.is_held(name):
                self._gone.append(name)

    def _lock(self, name: str) -> int:
        descriptor = self._locks.lock(name)
        self._made.append((name, descriptor))
        return descriptor

    def _number(self, lease_id: str) -> int | None:
        for number, lease in self._leases.items():
            if lease.lease_id == lease_id:
                return number
        return None

    def _insert(self, table: str, name: str, record: Lease | Waiter) -> int:
        cursor = self._connection.execute(
            f"INSERT INTO {table} (name, record) VALUES (?, ?)",  # noqa: S608 - our own name
            (name, msgspec.json.encode(record)),
        )
        return cursor.lastrowid or 0

    def _update(self, number: int, lease: Lease) -> None:
        self._connection.execute(
            "UPDATE leases SET record = ? WHERE number = ?", (msgspec.json.encode(lease), number)
        )
        self._leases[number] = lease

    def _delete(self, table: str, number: int, name: str) -> None:
        self._connection.execute(f"DELETE FROM {table} WHERE number = ?", (number,))  # noqa: S608 - our own name
        self._gone.append(name)
        self.gave_back = True


def awaits_memory(lease: Lease) -> bool:
    """Whether memory may come back later than the lease's last process went.

    A GPU's own memory is given back by its driver some time after. The host's, which integrated
    and software devices share, is freed by the kernel before it frees the lock.
    """
    return lease.memory_pool == lease.hardware_id and lease.used_before_bytes is not None


def _over(lease: Lease, now_seconds: float) -> bool:
    if lease.ended_seconds is not None:
        # Who sees the device judges first, and says what became of the memory.
        return now_seconds >= lease.ended_seconds + SETTLE_SECONDS + GRACE_SECONDS
    return lease.expires_seconds is not None and now_seconds >= lease.expires_seconds
