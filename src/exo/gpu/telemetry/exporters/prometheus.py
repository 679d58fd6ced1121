"""Prometheus text exposition: one series for each figure that is known, none for the others."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from exo.gpu.telemetry.exporters import series as table
from exo.gpu.vocabulary.health import Health

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exo.gpu.telemetry.exporters.series import Series
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# A driver's string must not blow up what stores labels; other exporters of the field cut there too.
LONGEST_LABEL = 256

Labels = tuple[tuple[str, str], ...]
_Line = tuple[Labels, float]


def prometheus_text(
    snapshot: Snapshot, *, missing: Iterable[MissingDevice] = (), version: str = ""
) -> str:
    """Everything that a snapshot knows, in Prometheus' text format 0.0.4.

    Series carry the device's ``uuid`` and, in a cluster, its ``node``; names, labels and versions
    are in ``exo_gpu_device_info`` alone, to be joined by them. What a device does not tell has no
    series. A stale sample gives none either: only ``up`` and the age tell of it.
    """
    states = snapshot.devices
    fresh = [state for state in states if _is_fresh(state, snapshot)]
    text: list[str] = []
    for family, lines in _stated(states, fresh):
        text += _family(family, lines)
    for _, group in groupby(table.SAMPLED, key=lambda series: series.name):
        columns = list(group)
        lines = [line for column in columns for line in _sampled(column, fresh)]
        text += _family(columns[0], lines)
    gone = [(_described(one.device), 1.0) for one in missing]
    text += _family(table.MISSING, gone)
    if version:
        text += _family(table.BUILD_INFO, [((("version", version),), 1.0)])
    return "".join(f"{line}\n" for line in text)


def _is_fresh(state: DeviceState, snapshot: Snapshot) -> bool:
    age = state.sample_age_seconds
    return state.sample is not None and age is not None and age <= snapshot.stale_after_seconds


def _stated(
    states: Sequence[DeviceState], fresh: Sequence[DeviceState]
) -> Iterator[tuple[Series, list[_Line]]]:
    """The families that do not come from a reading."""
    yield table.INFO, [(_described(state.device), 1.0) for state in states]
    known = {id(state) for state in fresh}
    yield table.UP, [(_identity(state.device), float(id(state) in known)) for state in states]
    yield (
        table.SAMPLE_AGE,
        [
            (_identity(state.device), state.sample_age_seconds)
            for state in states
            if state.sample_age_seconds is not None
        ],
    )
    yield (
        table.HEALTH,
        [
            ((*_identity(state.device), ("state", health.value)), float(state.health is health))
            for state in states
            for health in Health
        ],
    )
    yield (
        table.CORDONED,
        [(_identity(state.device), float(state.cordon is not None)) for state in states],
    )
    yield (
        table.THROTTLE,
        [
            ((*_identity(state.device), ("reason", reason)), 1.0)
            for state in fresh
            if state.sample is not None
            for reason in dict.fromkeys(state.sample.throttle_reasons or ())
        ],
    )
    yield (
        table.THROTTLED,
        [
            ((*_identity(state.device), ("kind", kind.value)), 1.0)
            for state in fresh
            if state.sample is not None
            for kind in dict.fromkeys(state.sample.throttle_kinds or ())
        ],
    )
    yield table.LEASES, [(_identity(state.device), float(len(state.leases))) for state in states]
    yield (
        table.LEASED_MEMORY,
        [
            (
                _identity(state.device),
                float(sum(lease.memory_bytes or 0 for lease in state.leases)),
            )
            for state in states
        ],
    )
    yield table.SLOTS, [(_identity(state.device), float(state.device.slots)) for state in states]
    yield (
        table.SPEED,
        [
            (_identity(state.device), state.measured_gflops * table.SPEED.factor)
            for state in states
            if state.measured_gflops is not None
        ],
    )


def _sampled(series: Series, states: Iterable[DeviceState]) -> Iterator[_Line]:
    for state in states:
        value = getattr(state.sample, series.field)
        if value is None:
            continue
        labels = (*_identity(state.device), *series.labels)
        partial = state.sample is not None and state.sample.utilization_is_lower_bound
        if partial and series.field == "compute_utilization_percent":
            labels = (*labels, ("bound", "lower"))
        # 1 % is 0.01: written as the nearest number of few digits, not as 1 * 0.01 happens to be.
        yield labels, float(f"{value * series.factor:.15g}")


def _identity(device: GPUDevice) -> Labels:
    """What tells a device from every other; Prometheus takes an empty label for an absent one."""
    return (("uuid", device.hardware_id), *((("node", device.node),) if device.node else ()))


def _described(device: GPUDevice) -> Labels:
    facts = (
        ("device", device.device_id),
        ("name", device.name),
        ("vendor", device.vendor),
        ("backend", device.backend_name),
        ("runtime", device.runtime),
        ("class", device.device_class.value),
        ("driver_version", device.driver_version),
        ("pci_address", device.pci_address),
    )
    return (*_identity(device), *((name, value) for name, value in facts if value))


def _family(series: Series, lines: Sequence[_Line]) -> list[str]:
    """HELP and TYPE once, then the series, each label set once; nothing where none is known."""
    if not lines:
        return []
    name = table.PREFIX + series.name
    values = dict(lines)
    return [
        f"# HELP {name} {_escaped(series.text)}",
        f"# TYPE {name} {series.kind}",
        *(f"{name}{{{_written(labels)}}} {_number(value)}" for labels, value in values.items()),
    ]


def _written(labels: Labels) -> str:
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in labels)


def _quoted(value: str) -> str:
    return _escaped(value[:LONGEST_LABEL]).replace('"', '\\"')


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
