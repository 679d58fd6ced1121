"""Which devices will never do, and why: rules about what no wait changes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from exo.gpu.scheduling.ledger import total_memory
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.request import Request, capability_key
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot
from exo.gpu.vocabulary.units import format_size

Filter = Callable[[DeviceState, Snapshot, Request], Refusal | None]


def names_of(device: GPUDevice) -> tuple[str, ...]:
    """Every name by which a request may ask for the device."""
    return (device.device_id, device.hardware_id, *device.aliases)


def unknown_names(snapshot: Snapshot, names: Iterable[str]) -> tuple[Refusal, ...]:
    """A refusal for each of these devices that is not here, with the near spelling."""
    if not names:
        return ()
    known = [name for state in snapshot.devices for name in names_of(state.device)]
    here = ", ".join(state.device.device_id for state in snapshot.devices) or "none"
    return _unknown("name", "no device here is called", names, known, here)


def unknown_labels(snapshot: Snapshot, labels: Iterable[str]) -> tuple[Refusal, ...]:
    """A refusal for each of these labels that no device here has, with the near spelling."""
    if not labels:
        return ()
    known = sorted({label for state in snapshot.devices for label in state.settings.labels})
    here = ", ".join(known) or "none"
    return _unknown("label", "no device here has the label", labels, known, here)


def remarks_on(snapshot: Snapshot, request: Request) -> tuple[str, ...]:
    """What a request rules out or prefers, but nothing here is called, with the near spelling.

    That may be meant, as where a card is away: so it is said, and refuses nothing.
    """
    names = dict.fromkeys((*request.without_devices, *request.prefer))
    unknown = (
        *unknown_names(snapshot, names),
        *unknown_labels(snapshot, request.without_labels),
    )
    return tuple(one.reason for one in unknown)


def contradictions(request: Request) -> tuple[Refusal, ...]:
    """A refusal for each two parts of a request that exclude each other."""
    if not (request.without_labels or request.without_devices or request.exclusive):
        return ()  # nothing that could exclude anything; asked for every device
    reasons = [
        f"label {label!r} is asked for and ruled out"
        for label in request.labels
        if label in request.without_labels
    ]
    for field, words in (("devices", "asked for"), ("prefer", "preferred")):
        reasons += [
            f"device {name!r} is {words} and ruled out"
            for name in getattr(request, field)
            if name in request.without_devices
        ]
    if request.exclusive and request.share is not None and request.share < 1:
        reasons.append(f"a device is asked for alone, and a share of {request.share:g} of it")
    return tuple(
        Refusal(device_id="request", rule="contradiction", reason=reason, permanent=True)
        for reason in reasons
    )


def by_sense(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """No device at all for a request that contradicts itself."""
    del snapshot
    if not contradictions(request):
        return None
    return never(state, "contradiction", "cannot serve what contradicts itself")


def by_name(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the devices that the request names; none of them where it names an unknown one."""
    if not request.devices:
        return None
    if not set(names_of(state.device)).intersection(request.devices):
        return never(state, "device", "is not among the devices named")
    unknown = unknown_names(snapshot, request.devices)
    if unknown:
        missing = ", ".join(repr(refusal.device_id) for refusal in unknown)
        return never(state, "device", f"is named together with {missing}, which is not here")
    return None


def by_ruled_out(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """None of the devices that the request rules out."""
    del snapshot
    if set(names_of(state.device)).isdisjoint(request.without_devices):
        return None
    return never(state, "device", "is ruled out by the request")


def by_node(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the machine that the request names."""
    del snapshot
    actual = state.device.node
    if request.node in {None, actual}:
        return None
    return never(state, "node", f"is on node {actual or 'here'}, not {request.node or 'here'}")


def by_class(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the class that the request names."""
    del snapshot
    actual = state.device.device_class
    if request.device_class in {None, actual}:
        return None
    return never(state, "class", f"is of class {actual}, not {request.device_class}")


def by_runtime(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the runtime that the request names."""
    del snapshot
    actual = state.device.runtime
    if request.runtime in {None, actual}:
        return None
    return never(state, "runtime", f"belongs to runtime {actual}, not {request.runtime}")


def by_vendor(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the vendors that the request names, whatever their case."""
    del snapshot
    actual, asked = state.device.vendor, request.vendors
    if not asked or actual.casefold() in {name.casefold() for name in asked}:
        return None
    return never(state, "vendor", f"is made by {actual}, not {' or '.join(asked)}")


def by_backend(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Only the backends that the request names."""
    del snapshot
    actual, asked = state.device.backend, request.backends
    if not asked or actual in asked:
        return None
    return never(state, "backend", f"was found by backend {actual}, not {' or '.join(asked)}")


def by_capability(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """At least the compute capability that the request names, compared as numbers."""
    del snapshot
    asked = request.min_compute_capability
    if asked is None:
        return None
    actual = state.device.compute_capability
    key, least = capability_key(actual), capability_key(asked)
    if key is None or least is None:
        said = "no compute capability" if actual is None else f"compute capability {actual!r}"
        return never(state, "capability", f"reports {said}, and at least {asked} is asked for")
    if key >= least:
        return None
    return never(state, "capability", f"has compute capability {actual}, {asked} is asked for")


def by_labels(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """All of the labels asked for, and none of those ruled out."""
    del snapshot
    own = state.settings.labels
    missing = [label for label in request.labels if label not in own]
    if missing:
        return never(state, "label", f"lacks the label {_quoted(missing)}")
    unwanted = [label for label in request.without_labels if label in own]
    if unwanted:
        return never(state, "label", f"has the label {_quoted(unwanted)}, which is ruled out")
    return None


def by_max_share(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Never more of a device than leases may hold together."""
    del snapshot
    most = state.settings.max_share
    asked = 1.0 if request.exclusive else request.share
    if asked is None or asked <= most:
        if most > 0 or request.memory_bytes is not None:
            return None
        return never(state, "share", "may not be leased: its largest share is set to 0")
    what = "all" if asked == 1 else f"a share of {asked:g}"
    return never(state, "share", f"may be leased up to a share of {most:g}, {what} is asked for")


def by_total_memory(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Never a device that holds less than is asked, or whose memory nobody knows."""
    asked = memory_asked(state, request)
    if not asked:
        return None
    total = total_memory(state, snapshot)
    if total is None:
        reason = f"reports no memory total, and {format_size(asked)} are asked for"
        return never(state, "memory", reason)
    if total >= asked:
        return None
    reason = f"holds {format_size(total)} in all, {format_size(asked)} are asked for"
    return never(state, "memory", reason, total_bytes=total)


def by_host(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Never a device whose machine has fewer cores or less memory than is asked beside it."""
    cpus, memory = request.host_cpus, request.host_memory_bytes
    if cpus is None and memory is None:
        return None
    host = snapshot.hosts.get(state.device.node)
    if host is None:
        return never(state, "host", "is on a machine whose processor is not listed here")
    cores = host.settings.slots or host.device.slots
    if cpus is not None and cpus > cores:
        return never(state, "host", f"is on a machine of {cores} cores, {cpus} are asked for")
    total = total_memory(host, snapshot)
    if memory is not None and (total is None or total < memory):
        here = "an unknown amount" if total is None else format_size(total)
        asked = format_size(memory)
        return never(state, "host", f"is on a machine with {here} of memory, {asked} are asked for")
    return None


def by_told_readings(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
    """Never a device that was read and does not tell what the request sets a limit for."""
    del snapshot
    sample = state.sample
    if sample is None or sample.sleeping:
        return None
    if request.min_idle_percent and sample.compute_utilization_percent is None:
        return never(state, "idle", "does not report its utilization")
    if request.max_temperature_celsius is not None and sample.temperature_celsius is None:
        return never(state, "temperature", "does not report its temperature")
    return None


LASTING_FILTERS: tuple[Filter, ...] = (
    by_name,
    by_ruled_out,
    by_node,
    by_class,
    by_runtime,
    by_vendor,
    by_backend,
    by_capability,
    by_labels,
    by_max_share,
    by_told_readings,
    by_host,
    by_total_memory,
)
"""In the order in which they are asked: the later a rule, the closer was the device to a yes."""


def memory_asked(state: DeviceState, request: Request) -> int:
    """Bytes that must be free on the device; with host memory where both are the same pool."""
    asked = request.memory_bytes or 0
    if request.host_memory_bytes and state.device.memory_pool == HOST_POOL:
        asked += request.host_memory_bytes
    return asked


def never(state: DeviceState, rule: str, reason: str, *, total_bytes: int | None = None) -> Refusal:
    """A refusal that no wait changes."""
    return Refusal(
        device_id=state.device.device_id,
        rule=rule,
        reason=reason,
        permanent=True,
        total_bytes=total_bytes,
    )


def _unknown(
    rule: str, what: str, asked: Iterable[str], known: Sequence[str], here: str
) -> tuple[Refusal, ...]:
    refusals: list[Refusal] = []
    for name in asked:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        reason = f"{what} {name!r} ({hint}here: {here})"
        refusals.append(Refusal(device_id=name, rule=rule, reason=reason, permanent=True))
    return tuple(refusals)


def _quoted(labels: Iterable[str]) -> str:
    return ", ".join(repr(label) for label in labels)
