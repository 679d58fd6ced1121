"""Who is on every device: the processes that drivers list, side by side with the live leases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.nodes.foreign import lease_over
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.process import DeviceUser, Occupancy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.process import ProcessList, RunningProcess
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

NOTHING_YET = "leased, nothing on the device yet"
LEASES_ONLY = "leased; its processes are not told"
EVERYBODY = "every process works on the host: leases only"


def occupancy(node: Node, snapshot: Snapshot) -> Occupancy:
    """Everybody on the devices of a snapshot of ``node``, asked for now."""
    return join(snapshot, node.processes())


def join(snapshot: Snapshot, lists: Iterable[ProcessList]) -> Occupancy:
    """Processes with the leases that cover them, foreign ones, and leases without a process.

    A lease covers a process whose environment names it, else one that descends from its holder.
    On each device, what works under a lease comes first, then what takes most memory.
    """
    by_device = {one.device_id: one for one in lists}
    users: list[DeviceUser] = []
    untold: dict[str, str] = {}
    for state in snapshot.devices:
        device_id = state.device.device_id
        told = by_device.get(device_id)
        processes = () if told is None else told.processes
        reason = "nobody asked its driver" if told is None else told.reason
        reason = reason.removeprefix(f"{device_id}: ")
        if state.device.device_class is DeviceClass.HOST and not processes and reason:
            reason = EVERYBODY
        if reason:
            untold[device_id] = reason
        users += sorted(_users(state, processes, told=not reason), key=_order)
    return Occupancy(users=tuple(users), untold=untold)


def _order(user: DeviceUser) -> tuple[bool, int, int]:
    return user.foreign, -(user.memory_bytes or 0), user.pid or 0


def _users(
    state: DeviceState, processes: Iterable[RunningProcess], *, told: bool
) -> Iterator[DeviceUser]:
    at_work: set[str] = set()
    for process in processes:
        lease = lease_over(process, state.leases)
        if lease is not None:
            at_work.add(lease.lease_id)
        yield _working(state.device.device_id, process, lease)
    for lease in state.leases:
        if lease.lease_id not in at_work:
            yield _waiting(state.device.device_id, lease, NOTHING_YET if told else LEASES_ONLY)


def _working(device_id: str, process: RunningProcess, lease: Lease | None) -> DeviceUser:
    untold = "the driver does not tell its memory" if process.memory_bytes is None else ""
    return DeviceUser(
        device_id=device_id,
        pid=process.pid,
        user=process.user,
        command=process.command,
        since=process.since,
        memory_bytes=process.memory_bytes,
        foreign=lease is None,
        lease_id=None if lease is None else lease.lease_id,
        holder="" if lease is None else lease.holder,
        declared_bytes=None if lease is None else lease.memory_bytes,
        exclusive=lease is not None and lease.exclusive,
        share=None if lease is None else lease.share,
        reason="; ".join(filter(None, (process.reason, untold))),
    )


def _waiting(device_id: str, lease: Lease, reason: str) -> DeviceUser:
    return DeviceUser(
        device_id=device_id,
        pid=lease.pid or None,
        user=lease.user or None,
        command=lease.command or None,
        since=lease.taken_at or None,
        listed=False,
        lease_id=lease.lease_id,
        holder=lease.holder,
        declared_bytes=lease.memory_bytes,
        exclusive=lease.exclusive,
        share=lease.share,
        reason=reason,
    )
