"""Memory that counts: what is free on a device and in its pool once leases are honoured."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass
from exo.gpu.vocabulary.lease import Lease
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
    """One constraint: a device's own memory, or that of the pool it shares."""

    owner: str
    total: int | None
    used: int | None
    leases: tuple[Lease, ...]
    reserved: int

    @property
    def held(self) -> int:
        return sum(lease.memory_bytes or 0 for lease in self.leases)

    @property
    def foreign(self) -> int:
        """The largest use by nobody's lease that a grant recorded, never above the use now."""
        known = [lease.used_before_bytes or 0 for lease in self.leases]
        return min(max(known, default=0), self.used or 0)

    @property
    def counted(self) -> int:
        # A lease's bytes count before its processes have taken them: reading use alone would
        # start a hundred jobs at once.
        return max(self.used or 0, self.foreign + self.held)

    @property
    def free(self) -> int:
        return max(0, (self.total or 0) - self.reserved - self.counted)

    def described(self) -> str:
        use = "use unknown" if self.used is None else f"{format_size(self.used)} in use"
        held = f", {format_size(self.held)} leased" if self.held else ""
        kept = f", {format_size(self.reserved)} reserved" if self.reserved else ""
        return f"{self.owner}: {use}{held}{kept} of {format_size(self.total)}"


def free_memory(state: DeviceState, snapshot: Snapshot) -> FreeMemory:
    """What ``state`` can still give: the smaller of its own memory and of its pool.

    What is counted as used is the larger of the reading and of (use by nobody's lease when the
    leases were granted + everything leased). A device that shares a pool and reports no total of
    its own may use the whole pool.
    """
    limits = [limit for limit in _limits(state, snapshot) if limit.total is not None]
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


def others_leases(state: DeviceState, snapshot: Snapshot) -> tuple[Lease, ...]:
    """The leases on a device, without those under which the asker itself works."""
    return tuple(lease for lease in state.leases if lease.lease_id not in snapshot.umbrella)


def total_memory(state: DeviceState, snapshot: Snapshot) -> int | None:
    """The most that ``state`` could ever give, or None where nobody knows."""
    limits = _limits(state, snapshot)
    known = [max(0, limit.total - limit.reserved) for limit in limits if limit.total is not None]
    return min(known) if known else None


def used_before(state: DeviceState, snapshot: Snapshot) -> int | None:
    """What a lease granted now records as ``used_before_bytes``: the use by nobody's lease.

    On a device that shares a pool this is the use of the pool. None where it is not reported.
    """
    limit = _limits(state, snapshot)[-1]
    if limit.used is None:
        return None
    return max(limit.used - limit.held, limit.foreign)


def _limits(state: DeviceState, snapshot: Snapshot) -> tuple[_Limit, ...]:
    """The device's own limit, and behind it that of its pool where it shares one."""
    own = _limit(state.device.device_id, state, others_leases(state, snapshot))
    members = _pool_members(state, snapshot)
    if not members:
        return (own,)
    pool = state.device.memory_pool
    leases = tuple(
        lease
        for member in members
        for lease in others_leases(member, snapshot)
        if lease.memory_pool == pool
    )
    # What a grant recorded on a shared pool is the pool's use, so it says nothing of the device.
    unrecorded = tuple(
        msgspec.structs.replace(lease, used_before_bytes=None) for lease in own.leases
    )
    whole = _limit(f"pool {pool}", _keeper(members), leases)
    return (msgspec.structs.replace(own, leases=unrecorded), whole)


def _limit(owner: str, state: DeviceState, leases: tuple[Lease, ...]) -> _Limit:
    sample = state.sample
    reserved = 0 if sample is None else sample.memory_reserved_bytes or 0
    return _Limit(owner, _own_total(state), _sampled_use(state), leases, reserved)


def _pool_members(state: DeviceState, snapshot: Snapshot) -> tuple[DeviceState, ...]:
    """Every device of the same node whose memory is the same; empty for a pool of its own."""
    pool, node = state.device.memory_pool, state.device.node
    if pool == state.device.hardware_id:
        return ()
    members = tuple(
        other
        for other in snapshot.devices
        if other.device.memory_pool == pool and other.device.node == node
    )
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
