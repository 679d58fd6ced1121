"""Who holds what and who waits, for people; and how a lease is ended by force."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.process_facts import describe
from exo.gpu.execution.process_tree import process_tree
from exo.gpu.nodes.overrun import Seen, seen_among, seen_under
from exo.gpu.vocabulary.errors import LeaseKept, NoSuchLease
from exo.gpu.vocabulary.lease import Lease, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.execution.lease_store import LeaseStore


def measured(
    leases: tuple[Lease, ...], driver_list: Callable[[str], list[DeviceProcess] | None]
) -> tuple[Lease, ...]:
    """The leases with what their holders' processes are seen to hold now.

    Where the driver lists nothing, or the holder's tree is not on its list, what was noted last
    stays. Where one process holds several leases on a device, as for its workers, each has the
    processes that name it; with others in the same tree nobody can tell whose their memory is.
    """
    holders = Counter((lease.device_id, lease.pid) for lease in leases if not lease.settling)
    lists: dict[str, list[DeviceProcess] | None] = {}
    fresh: list[Lease] = []
    for lease in leases:
        if lease.device_id not in lists:
            lists[lease.device_id] = driver_list(lease.device_id)
        listed = lists[lease.device_id]
        seen = None if listed is None or lease.settling else seen_under(lease.pid, listed)
        if seen is not None and listed is not None and holders[lease.device_id, lease.pid] > 1:
            seen = _own_part(lease, seen, listed)
        if seen is not None and (seen.pids or lease.seen_bytes is None):
            lease = msgspec.structs.replace(  # noqa: PLW2901 - the same lease, seen anew
                lease, seen_bytes=seen.memory_bytes, seen_pids=seen.pids
            )
        fresh.append(lease)
    return tuple(fresh)


def of_the_living(store: LeaseStore, lease: Lease) -> Lease:
    """The lease with a process that goes on under it in the place of a holder that is gone."""
    import psutil

    if lease.settling or psutil.pid_exists(lease.pid):
        return lease
    others = store.locks.pids(lease.lease_id)
    return msgspec.structs.replace(lease, pid=others[0]) if others else lease


def _own_part(lease: Lease, seen: Seen, listed: list[DeviceProcess]) -> Seen | None:
    """What of a tree's processes work under this lease; None where that cannot be told."""
    named = {pid: describe(pid).lease_ids for pid in seen.pids}
    own = [one for one in listed if lease.lease_id in named.get(one.pid, ())]
    if not own and not all(named.values()):
        return None
    return seen_among(own)


def processes_under(store: LeaseStore, lease: Lease) -> tuple[int, ...]:
    """Every process that works under a lease, as far as this user may look.

    Those that have its lock open, and what the holder started without handing it on.
    """
    opened = store.locks.pids(lease.lease_id)
    return tuple(sorted({*opened, *(process_tree(lease.pid) if lease.pid in opened else ())}))


def release_by_force(store: LeaseStore, name: str, *, force: bool) -> Lease | Waiter:
    """Strike out a lease, or take a waiter out of the line; its record, as it was.

    Raises:
        NoSuchLease: for an id that neither a lease nor a waiter has.
        LeaseKept: when another user made it, and this one is not root; or when processes work
            under it and ``force`` is not given, since they would share it with the next holder.

    """
    with store.transaction() as book:
        book.prune()
        record = find(book.leases, book.waiters, name)
        owner = store.locks.owner(name)
        if os.geteuid() not in {0, owner} and owner is not None:
            raise LeaseKept(f"{name} is {record.user}'s: only {record.user} or root may end it")
        if isinstance(record, Waiter):
            book.dequeue(name)
            book.woken.append(name)
            return record
        if not record.settling and not force:
            raise _kept(record, processes_under(store, record))
        book.drop(name)
        return record


def find(leases: tuple[Lease, ...], waiters: tuple[Waiter, ...], name: str) -> Lease | Waiter:
    """The lease or waiter of that id.

    Raises:
        NoSuchLease: naming what there is.

    """
    for lease in leases:
        if lease.lease_id == name:
            return lease
    for waiter in waiters:
        if waiter.waiter_id == name:
            return waiter
    here = [lease.lease_id for lease in leases] + [waiter.waiter_id for waiter in waiters]
    known = ", ".join(here) or "none"
    raise NoSuchLease(f"no lease and nobody who waits has the id {name!r} (here: {known})")


def _kept(lease: Lease, pids: tuple[int, ...]) -> LeaseKept:
    who = f"processes {', '.join(map(str, pids))}" if pids else "processes of another user"
    return LeaseKept(
        f"{who} still work under {lease.lease_id} on {lease.device_id}: end them and it ends by "
        "itself; --force strikes it out, and the next holder then shares the device with them",
        pids,
    )
