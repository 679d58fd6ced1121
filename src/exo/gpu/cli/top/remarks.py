"""What there is to say of a device beyond its figures, and all that is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.cli.render import UNKNOWN, moment, paragraphs
from exo.gpu.cli.users import printable, reason_lines, users_table
from exo.gpu.vocabulary.health import Health
from exo.gpu.vocabulary.metrics import SERIES
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exo.gpu.cli.top.columns import Row
    from exo.gpu.vocabulary.health import Cordon
    from exo.gpu.vocabulary.lease import Lease

# The end of a field's name -> how its unit is written for people; sizes choose their own.
_UNITS = {
    "_bytes": "",
    "_percent": " %",
    "_watts": " W",
    "_celsius": " C",
    "_mhz": " MHz",
    "_joules": " J",
    "_seconds": " s",
}


def remarks(row: Row) -> list[str]:
    """Its health where it is not sound, its cordon, and why its clock is held back."""
    state = row.state
    found: list[str] = []
    if state.health is not Health.OK or state.health_reason:
        found.append(": ".join(filter(None, (state.health.value, state.health_reason))))
    if state.cordon is not None:
        found.append(cordon_words(state.cordon))
    throttled = () if state.sample is None else state.sample.throttle_reasons or ()
    if throttled:
        found.append(f"throttled: {', '.join(throttled)}")
    return [printable(text) for text in found]


def cordon_words(cordon: Cordon) -> str:
    """Who keeps it out of scheduling, since and until when, and why."""
    until = "" if cordon.until is None else f" until {moment(cordon.until)}"
    kind = "draining" if cordon.draining else "cordoned"
    return f"{kind} by {cordon.by} since {moment(cordon.since)}{until}: {cordon.why}"


def detail_lines(row: Row, untold: Mapping[str, str], *, now: float, width: int) -> list[str]:
    """Everything known of one device: what it is, how it is, who is on it."""
    facts = [(term, printable(text)) for term, text in _facts(row)]
    lines = [*paragraphs(facts, width=width).splitlines(), ""]
    lines += paragraphs(list(_readings(row)), width=width).splitlines()
    lines.append("")
    if row.users:
        lines += users_table(row.users, now=now, width=width, devices=False)
    elif row.told:
        lines.append("Nobody is on it.")
    own = {name: why for name, why in untold.items() if name == row.device_id}
    return lines + reason_lines(row.users, own, width=width)


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    device, state = row.state.device, row.state
    yield "device", f"{device.device_id}  {device.name}"
    yield "identity", device.hardware_id
    if device.aliases:
        yield "also", ", ".join(device.aliases)
    kind = f"{device.device_class.value}, {device.runtime}, {device.vendor}"
    yield "kind", f"{kind}, driver {device.driver_version or UNKNOWN}"
    if device.node:
        yield "node", device.node
    yield "place", f"PCI {device.pci_address or UNKNOWN}, NUMA node {_text(device.numa_node)}"
    yield "slots", str(device.slots)
    yield "health", ": ".join(filter(None, (state.health.value, state.health_reason)))
    if state.cordon is not None:
        yield "cordon", cordon_words(state.cordon)
    for lease in state.leases:
        yield "lease", _lease_words(lease)


def _lease_words(lease: Lease) -> str:
    size = "the whole device" if lease.exclusive else format_size(lease.memory_bytes)
    if lease.memory_bytes is None and not lease.exclusive:
        size = "a slot"
    since = f"since {moment(lease.taken_at)}" if lease.taken_at else ""
    who = f"{lease.user or UNKNOWN} {lease.pid or UNKNOWN}"
    return "  ".join(filter(None, (size, who, since, lease.holder or lease.command)))


def _readings(row: Row) -> Iterator[tuple[str, str]]:
    """Each reading with its unit; of a missing one why it is missing, where that is known."""
    sample = row.state.sample
    if sample is None:
        yield "readings", "none yet"
        return
    for metric in SERIES:
        value = getattr(sample, metric)
        why = sample.missing_reasons.get(metric, "")
        if value is None and not why:
            continue
        words, unit = _words(metric)
        number = format_size(value) if metric.endswith("_bytes") else f"{_text(value)}{unit}"
        yield words, f"{UNKNOWN}  {printable(why)}" if value is None else number
    throttled = sample.throttle_reasons
    yield "throttled", UNKNOWN if throttled is None else ", ".join(throttled) or "no"


def _words(metric: str) -> tuple[str, str]:
    """What a field of a sample is called, and its unit: ``("power limit", " W")``."""
    for suffix, unit in _UNITS.items():
        if metric.endswith(suffix):
            return metric.removesuffix(suffix).replace("_", " "), unit
    return metric.replace("_", " "), ""


def _text(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.10g}"
