"""Memory that counts: what is free on a device and in its pool once leases are honoured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DESKTOP_BYTES
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot
from exo.gpu.vocabulary.units import format_size


class FreeMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can still give, in bytes.

    ``total_bytes`` and ``free_bytes`` are None where no total is known, the pool's included.
    ``assumed`` is true where a reading is missing and the leases alone were subtracted; ``note``
    says in words what the figure is made of.
    """

    free_bytes: int | None
    total_bytes: int | None
    assumed: bool = False
    note: str = ""


class _Limit(msgspec.Struct, frozen=True):
    """One constraint: a device's own memory, or that of the pool it shares.

    ``held`` is what leases declare, ``foreign`` the largest use by nobody's lease that a grant
    recorded, never above the use now; ``kept`` is what others are to have, what they use included,
    and ``lasting`` the part of it that stays when they leave. ``leasable`` bounds all leases.
    """

    owner: str
    total: int | None
    used: int | None
    reserved: int
    held: int
    foreign: int
    kept: int = 0
    lasting: int = 0
    leasable: int | None = None

    @property
    def free(self) -> int:
        # A lease's bytes count before its processes have taken them: reading use alone would
        # start a hundred jobs at once.
        others = self.kept if self.kept > self.foreign else self.foreign
        counted = max(self.used or 0, others + self.held)
        left = (self.total or 0) - self.reserved - counted
        if self.leasable is not None:
            left = min(left, self.leasable - self.held)
        return left if left > 0 else 0

    @property
    def most(self) -> int:
        """What one lease could ever get."""
        most = (self.total or 0) - self.reserved - self.lasting
        if self.leasable is not None:
            most = min(most, self.leasable)
        return most if most > 0 else 0

    def described(self) -> str:
        use = "use unknown" if self.used is None else f"{format_size(self.used)} in use"
        held = f", {format_size(self.held)} leased" if self.held else ""
        reserved = f", {format_size(self.reserved)} reserved" if self.reserved else ""
        kept = f", {format_size(self.kept)} kept for others" if self.kept else ""
        part = "" if self.leasable is None else f", {format_size(self.leasable)} of it for leases"
        return f"{self.owner}: {use}{held}{reserved}{kept} of {format_size(self.total)}{part}"


def free_memory(state: DeviceState, snapshot: Snapshot) -> FreeMemory:
    """What ``state`` can still give: the smaller of its own memory and of its pool.

    What is counted as used is the larger of the reading and of everything leased beside the use by
    nobody's lease when the leases were granted, or beside what is kept for others where that is
    more. A device that shares a pool and reports no total of its own may use the whole pool.
    """
    limits = [one for one in _limits(state, snapshot) if one is not None and one.total is not None]
    if not limits:
        note = f"{state.device.device_id} reports no memory total"
        return FreeMemory(free_bytes=None, total_bytes=None, note=note)
    tightest = min(limits, key=lambda limit: limit.free)
    own = _sampled_use(state)
    return FreeMemory(
        free_bytes=tightest.free,
        total_bytes=min(limit.total for limit in limits if limit.total is not None),
        assumed=own is None or any(limit.used is None for limit in limits),
        note=tightest.described(),
    )


def memory_figures(
    state: DeviceState, snapshot: Snapshot
) -> tuple[int | None, int | None, int | None]:
    """The figures of :func:`free_memory` alone: free, total, and the most one lease could get.

    They are worked out once for a device of the snapshot; one without devices only lends its rules.
    """
    if not snapshot.devices:
        return _figures(state, snapshot)
    known = snapshot.memory.get(id(state))
    if known is None or known[0] is not state:
        known = snapshot.memory[id(state)] = (state, _figures(state, snapshot))
    return known[1]


def _figures(state: DeviceState, snapshot: Snapshot) -> tuple[int | None, int | None, int | None]:
    own, pool = _limits(state, snapshot)
    if pool is None or pool.total is None:
        return (None, None, None) if own.total is None else (own.free, own.total, own.most)
    if own.total is None:
        return pool.free, pool.total, pool.most
    return (
        min(own.free, pool.free),
        min(own.total, pool.total),
        min(own.most, pool.most),
    )


def others_leases(state: DeviceState, snapshot: Snapshot) -> tuple[Lease, ...]:
    """The leases on a device, without those under which the asker itself works."""
    if not state.leases or not snapshot.umbrella:
        return state.leases
    return tuple(lease for lease in state.leases if lease.lease_id not in snapshot.umbrella)


def total_memory(state: DeviceState, snapshot: Snapshot) -> int | None:
    """The most that ``state`` could ever give, or None where nobody knows."""
    return memory_figures(state, snapshot)[2]


def used_before(state: DeviceState, snapshot: Snapshot) -> int | None:
    """What a lease granted now records as ``used_before_bytes``: the use by nobody's lease.

    On a device that shares a pool this is the use of the pool. None where it is not reported.
    """
    own, pool = _limits(state, snapshot)
    limit = own if pool is None else pool
    if limit.used is None:
        return None
    return max(limit.used - limit.held, limit.foreign)


def lease_for(
    state: DeviceState, snapshot: Snapshot, request: Request, *, with_host: bool = True
) -> Lease:
    """What a request takes of a device that was chosen for it; who writes it down adds the id.

    With ``with_host`` it also holds what the request needs of the device's machine.
    """
    return Lease(
        lease_id="",
        device_id=state.device.device_id,
        hardware_id=state.device.hardware_id,
        memory_pool=state.device.memory_pool,
        memory_bytes=request.memory_bytes,
        exclusive=request.exclusive,
        share=request.share,
        host_cpus=request.host_cpus if with_host else None,
        host_memory_bytes=request.host_memory_bytes if with_host else None,
        used_before_bytes=used_before(state, snapshot),
        expected_seconds=request.expected_seconds,
        holder=request.holder,
        kind=request.kind,
    )


def cores_beside(state: DeviceState, snapshot: Snapshot) -> int:
    """Cores of a processor that leases on other devices of its machine hold; else 0."""
    device = state.device
    if device.device_class is not DeviceClass.HOST:
        return 0
    everywhere = snapshot.host_leases.get(device.node, ())
    if not everywhere or snapshot.hosts[device.node].device.device_id != device.device_id:
        return 0
    own = {lease.lease_id for lease in state.leases}
    return sum(
        lease.host_cpus or 0
        for lease in everywhere
        if lease.lease_id not in own and lease.lease_id not in snapshot.umbrella
    )


def pool_figures(state: DeviceState, snapshot: Snapshot) -> tuple[int, int] | None:
    """Bytes free in the pool that a device shares, and the most that leases could ever get there.

    None for a device with memory of its own, or where the pool's total is not known.
    """
    _, pool = _limits(state, snapshot)
    return None if pool is None or pool.total is None else (pool.free, pool.most)


def _host_memory_held(snapshot: Snapshot, node: str) -> int:
    """Bytes of a machine's memory that leases hold beside their devices, the asker's left out."""
    return sum(
        lease.host_memory_bytes or 0
        for lease in snapshot.host_leases.get(node, ())
        if lease.lease_id not in snapshot.umbrella
    )


def _limits(state: DeviceState, snapshot: Snapshot) -> tuple[_Limit, _Limit | None]:
    """The device's own limit, and that of its pool where it shares one."""
    device = state.device
    members = _pool_members(state, snapshot)
    leases = others_leases(state, snapshot)
    held = sum([lease.memory_bytes or 0 for lease in leases]) if leases else 0
    # What a grant recorded on a shared pool is the pool's use, so it says nothing of the device.
    foreign = 0 if members else _foreign(state, leases)
    used, total = _sampled_use(state), _own_total(state)
    part = state.settings.max_share
    own = _Limit(
        device.device_id,
        total,
        used,
        _reserved(state),
        held,
        foreign,
        *((0, 0) if members else _kept(state, used, foreign if leases else used)),
        int(total * part) if part < 1 and total is not None else None,
    )
    return own, _pool_limit(state, members, snapshot) if members else None


def _pool_limit(state: DeviceState, members: tuple[DeviceState, ...], snapshot: Snapshot) -> _Limit:
    pool = state.device.memory_pool
    leases = [
        lease
        for member in members
        for lease in others_leases(member, snapshot)
        if lease.memory_pool == pool
    ]
    if snapshot.unseen and not state.device.node:
        leases += [
            lease
            for lease in snapshot.unseen
            if lease.memory_pool == pool and lease.lease_id not in snapshot.umbrella
        ]
    keeper = _keeper(members)
    used = _sampled_use(keeper)
    foreign = _foreign(keeper, leases)
    held = sum(lease.memory_bytes or 0 for lease in leases)
    if pool == HOST_POOL:
        held += _host_memory_held(snapshot, state.device.node)
    kept = [_kept(member, used, foreign if held else used) for member in members]
    return _Limit(
        f"pool {pool}",
        _own_total(keeper),
        used,
        _reserved(keeper),
        held,
        foreign,
        max(most for most, _ in kept),
        max(lasting for _, lasting in kept),
    )


def _foreign(state: DeviceState, leases: Sequence[Lease]) -> int:
    if not leases:
        return 0
    known = max(lease.used_before_bytes or 0 for lease in leases)
    return min(known, _sampled_use(state) or 0)


def _kept(state: DeviceState, used: int | None, foreign: int | None) -> tuple[int, int]:
    """What others are to have, and the part of it that stays when they leave.

    As a person set it, else room for the desktop on a card that drives a display.
    """
    kept = state.settings.reserve_bytes
    if kept is not None:
        return kept, kept
    if not state.device.drives_display:
        return 0, 0
    return DESKTOP_BYTES + min(foreign or 0, used or 0), DESKTOP_BYTES


def _reserved(state: DeviceState) -> int:
    return 0 if state.sample is None else state.sample.memory_reserved_bytes or 0


def _pool_members(state: DeviceState, snapshot: Snapshot) -> tuple[DeviceState, ...]:
    """Every device of the same node whose memory is the same; empty for a pool of its own."""
    pool, node = state.device.memory_pool, state.device.node
    if pool == state.device.hardware_id:
        return ()
    members = snapshot.pools.get((node, pool), ())
    return members if len(members) > 1 or pool == HOST_POOL else ()


def _keeper(members: Iterable[DeviceState]) -> DeviceState:
    """The device whose readings are those of the pool: the host, else the largest member.

    What reports its use and the id decide the rest, so that the order of registration never does.
    """
    return max(
        members,
        key=lambda member: (
            member.device.device_class is DeviceClass.HOST,
            _own_total(member) or 0,
            _sampled_use(member) is not None,
            member.device.device_id,
        ),
    )


def _own_total(state: DeviceState) -> int | None:
    sample = state.sample
    if sample is not None and sample.memory_total_bytes is not None:
        return sample.memory_total_bytes
    return state.device.memory_bytes


def _sampled_use(state: DeviceState) -> int | None:
    return None if state.sample is None else state.sample.memory_used_bytes
