"""Which devices will not do now, and why: one rule a function, applied in a fixed order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from exo.gpu.scheduling.constraints import (
    LASTING_FILTERS,
    Filter,
    by_sense,
    memory_asked,
    names_of,
    unknown_names,
)
from exo.gpu.scheduling.ledger import free_memory, host_held, others_leases
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot
from exo.gpu.vocabulary.units import format_size

__all__ = ["FILTERS", "Filter", "first_refusal", "names_of", "unknown_names"]

# Ten shares of 0.1 are a whole, whatever binary fractions make of them.
SHARE_TOLERANCE = 1e-9


def by_freshness(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Not a device whose last sample says nothing about now; never sampled is another matter."""
    del request
    age = state.sample_age_seconds
    if state.sample is None or age is None or age <= snapshot.stale_after_seconds:
        return None
    limit = snapshot.stale_after_seconds
    return _not_now(state, "stale", f"was last sampled {age:.0f} s ago (stale after {limit:g} s)")


def by_health(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Not a device that failed or is lost."""
    del snapshot, request
    if state.health not in {Health.FAILED, Health.LOST}:
        return None
    reason = f"is {state.health}{f': {state.health_reason}' if state.health_reason else ''}"
    return _not_now(state, "health", reason)


def by_cordon(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Not a device that a person or its health keeps out of scheduling."""
    del snapshot
    cordon = state.cordon
    if cordon is None or request.despite_cordon:
        return None
    verb = "is being drained" if cordon.draining else "is cordoned"
    return _not_now(state, "cordon", f"{verb} by {cordon.by}: {cordon.why}")


def by_exclusive(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """A whole device is for one lease only, and for what works under it."""
    leases = others_leases(state, snapshot)
    for lease in leases:
        if lease.exclusive:
            return _not_now(state, "exclusive", f"is wholly leased{_by(lease.holder, lease.pid)}")
    if request.exclusive and leases:
        count = len(leases)
        kind = "lease" if count == 1 else "leases"
        return _not_now(state, "exclusive", f"is asked for alone, but has {count} {kind}")
    return None


def by_slots(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Work that declares neither memory nor a share takes one of the device's slots."""
    if request.memory_bytes is not None or request.share is not None:
        return None
    leases = others_leases(state, snapshot)
    if not leases:
        return None
    taken = sum(takes_slot(lease) for lease in leases)
    slots = slots_of(state, request)
    if taken >= slots:
        return _not_now(state, "slots", f"has {taken} of {slots} slots taken")
    most = state.settings.max_share
    held = share_held(leases, most, slots)
    if held + most / slots <= most + SHARE_TOLERANCE:
        return None
    reason = f"has no slot free beside the shares of it that are leased ({held:g} of {most:g})"
    return _not_now(state, "slots", reason)


def by_share(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Shares must fit beside those that are leased; a slot counts as an equal part."""
    asked, most = request.share, state.settings.max_share
    if asked is None:
        return None
    held = share_held(others_leases(state, snapshot), most, slots_of(state, request))
    if held + asked <= most + SHARE_TOLERANCE:
        return None
    left = max(0.0, most - held)
    reason = f"has a share of {left:g} free of the {asked:g} asked for ({held:g} leased)"
    return _not_now(state, "share", reason)


def by_free_memory(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Work that declares memory must fit what is free on the device and in its pool."""
    asked = memory_asked(state, request)
    if not asked:
        return None
    memory = free_memory(state, snapshot)
    if memory.free_bytes is None or memory.free_bytes >= asked:
        return None
    free = format_size(memory.free_bytes)
    return Refusal(
        device_id=state.device.device_id,
        rule="memory",
        reason=f"has {free} free of the {format_size(asked)} asked for ({memory.note})",
        permanent=False,
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
    )


def by_idle(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """At least as much compute free as is asked; what reports none is no candidate."""
    del snapshot
    asked = request.min_idle_percent
    if not asked:
        return None
    sample = state.sample
    busy = None if sample is None else sample.compute_utilization_percent
    if busy is None:
        return _not_now(state, "idle", f"has no known utilization: {_unread(state)}")
    if 100 - busy >= asked:
        return None
    return _not_now(state, "idle", f"is {100 - busy:g} % idle, {asked:g} % are asked for")


def by_temperature(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """At most as hot as is asked; what reports no temperature is no candidate."""
    del snapshot
    most = request.max_temperature_celsius
    if most is None:
        return None
    celsius = None if state.sample is None else state.sample.temperature_celsius
    if celsius is None:
        return _not_now(state, "temperature", f"has no known temperature: {_unread(state)}")
    if celsius <= most:
        return None
    return _not_now(state, "temperature", f"is at {celsius:g} C, at most {most:g} C is asked for")


def by_free_host(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """The cores and the memory asked for beside the devices must be free on their machine."""
    cpus, memory = request.host_cpus, request.host_memory_bytes
    host = snapshot.hosts.get(state.device.node)
    if host is None or (cpus is None and memory is None):
        return None
    if cpus is not None:
        leases = others_leases(host, snapshot)
        taken = sum(takes_slot(lease) for lease in leases)
        left = slots_of(host) - taken - host_held(snapshot, state.device.node)[0]
        if left < cpus:
            reason = f"is on a machine with {max(0, left)} cores free of the {cpus} asked for"
            return _not_now(state, "host", reason)
    if memory is not None:
        free = free_memory(host, snapshot).free_bytes
        if free is not None and free < memory:
            words = f"{format_size(free)} of memory free of the {format_size(memory)} asked for"
            return _not_now(state, "host", f"is on a machine with {words}")
    return None


FILTERS: tuple[Filter, ...] = (
    by_sense,
    *LASTING_FILTERS,
    by_freshness,
    by_health,
    by_cordon,
    by_exclusive,
    by_slots,
    by_share,
    by_free_memory,
    by_idle,
    by_temperature,
    by_free_host,
)
"""Rules about what never changes come first, so that "never" is not hidden by "not now"."""


def takes_slot(lease: Lease) -> bool:
    """Whether a lease declares nothing, and so holds a slot."""
    return lease.memory_bytes is None and lease.share is None


def slots_of(state: DeviceState, request: Request | None = None) -> int:
    """How many leases that declare nothing the device takes at once."""
    asked = None if request is None else request.slots
    return asked or state.settings.slots or state.device.slots


def share_held(leases: Sequence[Lease], most: float, slots: int) -> float:
    """The part of a device that leases hold: their shares, and an equal part for each slot."""
    if not leases:
        return 0.0
    parts = [lease.share for lease in leases if lease.share is not None]
    return math.fsum(parts) + sum(takes_slot(lease) for lease in leases) * most / slots


def first_refusal(
    state: DeviceState,
    snapshot: Snapshot,
    request: Request,
    filters: tuple[Filter, ...] = FILTERS,
) -> Refusal | None:
    """What the first rule that objects says, or None for an eligible device."""
    return next(refusals_of(state, snapshot, request, filters), None)


def refusals_of(
    state: DeviceState,
    snapshot: Snapshot,
    request: Request,
    filters: tuple[Filter, ...] = FILTERS,
) -> Iterator[Refusal]:
    """What every rule that objects says, in the order of the rules."""
    for rule in filters:
        refusal = rule(state, snapshot, request)
        if refusal is not None:
            yield refusal


def _by(holder: str, pid: int) -> str:
    who = " ".join(part for part in (holder, f"(process {pid})" if pid else "") if part)
    return f" by {who}" if who else ""


def _not_now(state: DeviceState, rule: str, reason: str) -> Refusal:
    return Refusal(device_id=state.device.device_id, rule=rule, reason=reason, permanent=False)


def _unread(state: DeviceState) -> str:
    if state.sample is None:
        return "no sample yet"
    return "it is asleep" if state.sample.sleeping else "it does not report it"
