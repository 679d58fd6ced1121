"""Which devices will not do, and why: one rule a function, applied in a fixed order."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from exo.gpu.scheduling.ledger import free_memory, others_leases, total_memory
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot
from exo.gpu.vocabulary.units import format_size

Filter = Callable[[DeviceState, Snapshot, Request], Refusal | None]


def names_of(device: GPUDevice) -> tuple[str, ...]:
    """Every name by which a request may ask for the device."""
    return (device.device_id, device.hardware_id, *device.aliases)


def unknown_names(snapshot: Snapshot, request: Request) -> tuple[Refusal, ...]:
    """A refusal for each name in the request that no device here has, with the near spelling."""
    if not request.devices:
        return ()
    known = [name for state in snapshot.devices for name in names_of(state.device)]
    here = ", ".join(state.device.device_id for state in snapshot.devices) or "none"
    refusals: list[Refusal] = []
    for name in request.devices:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        reason = f"no device here is called {name!r} ({hint}here: {here})"
        refusals.append(Refusal(device_id=name, rule="name", reason=reason, permanent=True))
    return tuple(refusals)


def by_name(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the devices that the request names; none of them where it names an unknown one."""
    if not request.devices:
        return None
    if not set(names_of(state.device)).intersection(request.devices):
        return _never(state, "device", "is not among the devices named")
    unknown = unknown_names(snapshot, request)
    if unknown:
        missing = ", ".join(repr(refusal.device_id) for refusal in unknown)
        return _never(state, "device", f"is named together with {missing}, which is not here")
    return None


def by_class(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the class that the request names."""
    del snapshot
    actual = state.device.device_class
    if request.device_class in {None, actual}:
        return None
    return _never(state, "class", f"is of class {actual}, not {request.device_class}")


def by_runtime(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the runtime that the request names."""
    del snapshot
    actual = state.device.runtime
    if request.runtime in {None, actual}:
        return None
    return _never(state, "runtime", f"belongs to runtime {actual}, not {request.runtime}")


def by_total_memory(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Never a device that holds less than is asked, or whose memory nobody knows."""
    asked = request.memory_bytes
    if not asked:
        return None
    total = total_memory(state, snapshot)
    if total is None:
        reason = f"reports no memory total, and {format_size(asked)} are asked for"
        return _never(state, "memory", reason)
    if total >= asked:
        return None
    reason = f"holds {format_size(total)} in all, {format_size(asked)} are asked for"
    return _never(state, "memory", reason, total_bytes=total)


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
    """Work that declares no memory takes one of the device's slots."""
    if request.memory_bytes is not None:
        return None
    taken = sum(lease.memory_bytes is None for lease in others_leases(state, snapshot))
    slots = request.slots or state.device.slots
    if taken < slots:
        return None
    return _not_now(state, "slots", f"has {taken} of {slots} slots taken")


def by_free_memory(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Work that declares memory must fit what is free on the device and in its pool."""
    asked = request.memory_bytes
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


FILTERS: tuple[Filter, ...] = (
    by_name,
    by_class,
    by_runtime,
    by_total_memory,
    by_freshness,
    by_health,
    by_cordon,
    by_exclusive,
    by_slots,
    by_free_memory,
)
"""Rules about what never changes come first, so that "never" is not hidden by "not now"."""


def first_refusal(
    state: DeviceState,
    snapshot: Snapshot,
    request: Request,
    filters: tuple[Filter, ...] = FILTERS,
) -> Refusal | None:
    """What the first rule that objects says, or None for an eligible device."""
    for rule in filters:
        refusal = rule(state, snapshot, request)
        if refusal is not None:
            return refusal
    return None


def _by(holder: str, pid: int) -> str:
    who = " ".join(part for part in (holder, f"(process {pid})" if pid else "") if part)
    return f" by {who}" if who else ""


def _never(
    state: DeviceState, rule: str, reason: str, *, total_bytes: int | None = None
) -> Refusal:
    return Refusal(
        device_id=state.device.device_id,
        rule=rule,
        reason=reason,
        permanent=True,
        total_bytes=total_bytes,
    )


def _not_now(state: DeviceState, rule: str, reason: str) -> Refusal:
    return Refusal(device_id=state.device.device_id, rule=rule, reason=reason, permanent=False)
