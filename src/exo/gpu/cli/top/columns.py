"""What the live table can show of a device: its columns, their texts and their order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from exo.gpu.cli.render import UNKNOWN, memory, reading
from exo.gpu.vocabulary.health import Health
from exo.gpu.vocabulary.process import DeviceUser
from exo.gpu.vocabulary.snapshot import DeviceState

NARROWEST_NAME = 8

# Worst first, as a person looks for trouble.
_SEVERITY = ("failed", "lost", "degraded", "cordoned", "draining", "sleeping", "ok")


class Row(msgspec.Struct, frozen=True):
    """A device with those who are on it; ``told`` says whether its driver lists processes."""

    state: DeviceState
    users: tuple[DeviceUser, ...] = ()
    told: bool = False

    @property
    def device_id(self) -> str:
        """Its label."""
        return self.state.device.device_id


class Column(msgspec.Struct, frozen=True):
    """One column: its title, its text of a row, what it is sorted by (None: unknown), its form."""

    title: str
    text: Callable[[Row], str]
    key: Callable[[Row], Any]
    width: int
    """The least, so that a table does not jump about when figures change."""
    right: bool = False
    falling: bool = False
    """Whether the largest comes first, when nobody says otherwise."""


def condition(state: DeviceState) -> str:
    """Health in one word; of a sound device that is kept out of scheduling, that it is."""
    if state.cordon is not None and state.health in {Health.OK, Health.SLEEPING}:
        return "draining" if state.cordon.draining else "cordoned"
    return state.health.value


def natural(text: str) -> tuple[Any, ...]:
    """A key that puts ``cuda:2`` before ``cuda:10``."""
    parts = re.split(r"([0-9]+)", text)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def short_name(row: Row) -> str:
    """The device's name without the vendor's in front."""
    device = row.state.device
    prefix = f"{device.vendor} "
    name = device.name
    return name[len(prefix) :] if name.lower().startswith(prefix.lower()) else name


def value_of(row: Row, metric: str) -> float | None:
    """A reading of the newest sample; None where it is not known, NaN included."""
    value = None if row.state.sample is None else getattr(row.state.sample, metric)
    return value if value is not None and math.isfinite(value) else None


def memory_percent(row: Row) -> float | None:
    """How full its memory is."""
    used, total = value_of(row, "memory_used_bytes"), total_bytes(row)
    return None if used is None or not total else 100 * used / total


def total_bytes(row: Row) -> int | None:
    """Its memory by the sample, else by what was found."""
    sample = row.state.sample
    told = None if sample is None else sample.memory_total_bytes
    return row.state.device.memory_bytes if told is None else told


def _memory(row: Row) -> str:
    sample = row.state.sample
    return memory(None if sample is None else sample.memory_used_bytes, total_bytes(row))


def _on_it(row: Row) -> str:
    """How many are on it; ``+`` where the driver does not tell whether there are more."""
    if row.told:
        return str(len(row.users))
    return f"{len(row.users)}+" if row.users else UNKNOWN


def _metric(title: str, metric: str, unit: str, width: int, *, falling: bool = True) -> Column:
    return Column(
        title,
        lambda row: reading(value_of(row, metric), unit),
        lambda row: value_of(row, metric),
        width,
        right=True,
        falling=falling,
    )


def _fact(title: str, text: Callable[[Row], str | None]) -> Column:
    return Column(title, lambda row: text(row) or UNKNOWN, lambda row: text(row) or None, 0)


ID = Column("ID", lambda row: row.device_id, lambda row: natural(row.device_id), 6)
NAME = Column("NAME", short_name, lambda row: short_name(row).lower(), NARROWEST_NAME)
# Room for it is worth more than another column.
COMFORTABLE_NAME = 20

COLUMNS: tuple[Column, ...] = (
    ID,
    NAME,
    Column(
        "STATE",
        lambda row: condition(row.state),
        lambda row: _SEVERITY.index(condition(row.state)),
        8,
    ),
    _metric("UTIL", "compute_utilization_percent", "%", 5),
    Column("MEMORY", _memory, lambda row: value_of(row, "memory_used_bytes"), 13, True, True),
    _metric("TEMP", "temperature_celsius", "C", 5),
    _metric("POWER", "power_watts", "W", 6),
    Column(
        "USERS",
        _on_it,
        lambda row: len(row.users) if row.told or row.users else None,
        6,
        right=True,
        falling=True,
    ),
    # From here on as far as there is room, the most wanted first.
    Column(
        "FULL",
        lambda row: reading(memory_percent(row), "%"),
        memory_percent,
        5,
        right=True,
        falling=True,
    ),
    _metric("LIMIT", "power_limit_watts", "W", 6),
    _metric("CLOCK", "clock_rate_mhz", "MHz", 8),
    _metric("FAN", "fan_percent", "%", 4),
    Column(
        "LEASES",
        lambda row: str(len(row.state.leases)),
        lambda row: len(row.state.leases),
        6,
        right=True,
        falling=True,
    ),
    _fact("NODE", lambda row: row.state.device.node),
    _metric("HOTSPOT", "hotspot_temperature_celsius", "C", 8),
    _metric("MEMTEMP", "memory_temperature_celsius", "C", 8),
    _metric("MEMUTIL", "memory_utilization_percent", "%", 8),
    _metric("MEMCLOCK", "memory_clock_mhz", "MHz", 9),
    _metric("ERRORS", "uncorrected_errors", "", 7),
    _fact("RUNTIME", lambda row: row.state.device.runtime),
    _fact("CLASS", lambda row: row.state.device.device_class.value),
    _fact("DRIVER", lambda row: row.state.device.driver_version),
    _fact("VENDOR", lambda row: row.state.device.vendor),
)
ALWAYS = 8
"""How many of them are shown in any width."""
