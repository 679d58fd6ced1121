"""What was read from a device at one moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

READINGS: tuple[str, ...] = (
    "memory_used_bytes",
    "memory_total_bytes",
    "compute_utilization_percent",
    "power_watts",
    "temperature_celsius",
    "clock_rate_mhz",
)
"""The names of all readings of a sample, in the order of :class:`GPUMetrics`."""

SERIES: tuple[str, ...] = (
    *READINGS,
    "memory_reserved_bytes",
    "memory_utilization_percent",
    "memory_clock_mhz",
    "memory_temperature_celsius",
    "hotspot_temperature_celsius",
    "power_limit_watts",
    "power_window_seconds",
    "energy_joules",
    "fan_percent",
    "corrected_errors",
    "uncorrected_errors",
    "pcie_generation",
    "pcie_width",
)
"""The names of all fields of a sample that hold one number, in the order of columns."""

ABSOLUTE_ZERO_CELSIUS = -273.15

_AMOUNTS = (
    "power_watts",
    "clock_rate_mhz",
    "memory_clock_mhz",
    "power_limit_watts",
    "power_window_seconds",
    "energy_joules",
)
# A fan may be driven beyond its nominal speed, but no vendor reports more than 100 %.
_PERCENTAGES = ("compute_utilization_percent", "memory_utilization_percent", "fan_percent")
_TEMPERATURES = (
    "temperature_celsius",
    "memory_temperature_celsius",
    "hotspot_temperature_celsius",
)
_COUNTERS = ("corrected_errors", "uncorrected_errors", "pcie_generation", "pcie_width")
_SIZES = ("memory_used_bytes", "memory_total_bytes", "memory_reserved_bytes")


class Bound(NamedTuple):
    """What a reading can be: finite, ``low`` to ``high`` (both included), perhaps whole."""

    low: float = 0.0
    high: float = math.inf
    whole: bool = False


BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys((*_SIZES, *_COUNTERS), Bound(whole=True)),
    **dict.fromkeys(_AMOUNTS, Bound()),
    **dict.fromkeys(_PERCENTAGES, Bound(high=100.0)),
    **dict.fromkeys(_TEMPERATURES, Bound(low=ABSOLUTE_ZERO_CELSIUS)),
}
"""What :class:`GPUMetrics` takes for each of ``SERIES``; used memory is never above the total."""


class GPUMetrics(WireValue, frozen=True):
    """All readings of a device at one moment: a sample.

    ``timestamp`` is Unix time in seconds on the sender's clock, a label only; age is judged by
    the time of receipt. A reading that the device does not give is None, never 0, and
    ``missing_reasons`` may say why, by field name.

    Raises:
        InvalidValue: for an empty id, NaN, an infinity, a negative amount, more memory used than
            there is, or a utilization outside 0..100.

    """

    device_id: str
    timestamp: float
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    compute_utilization_percent: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    clock_rate_mhz: float | None = None
    missing_reasons: dict[str, str] = {}  # msgspec copies an empty default for each value
    sleeping: bool = False
    """True when the device is powered down and was deliberately not woken."""
    memory_reserved_bytes: int | None = None
    """Kept back by the driver itself, counted neither as used nor as free; None: not told."""
    memory_utilization_percent: float | None = None
    """Share of time in which memory was read or written: not how full it is."""
    utilization_is_lower_bound: bool = False
    """True when only a part of the clients could be seen, so that the device may be busier."""
    memory_clock_mhz: float | None = None
    memory_temperature_celsius: float | None = None
    hotspot_temperature_celsius: float | None = None
    power_limit_watts: float | None = None
    power_window_seconds: float | None = None
    """What ``power_watts`` is an average over; 0 for the value of the instant, None: not told."""
    energy_joules: float | None = None
    """A counter since the driver was loaded; a step back is a reset."""
    fan_percent: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Why the clock is held back, in the vendor's words; empty: it is not; None: not told."""
    corrected_errors: int | None = None
    """ECC: a counter of corrected memory errors; a step back is a reset."""
    uncorrected_errors: int | None = None
    """ECC: a counter of memory errors that were not corrected."""
    pcie_generation: int | None = None
    pcie_width: int | None = None

    def __post_init__(self) -> None:
        """Check every reading."""
        check_text("device_id", self.device_id)
        check_number("timestamp", self.timestamp)
        used, total = self.memory_used_bytes, self.memory_total_bytes
        check_whole("memory_used_bytes", used, optional=True)
        check_whole("memory_total_bytes", total, optional=True)
        if used is not None and total is not None and used > total:
            expected = f"at most memory_total_bytes ({total!r})"
            raise InvalidValue("memory_used_bytes", used, expected)
        check_whole("memory_reserved_bytes", self.memory_reserved_bytes, optional=True)
        for field in _AMOUNTS:
            check_number(field, getattr(self, field), low=0, optional=True)
        for field in _PERCENTAGES:
            check_number(field, getattr(self, field), low=0, high=100, optional=True)
        for field in _TEMPERATURES:
            check_number(field, getattr(self, field), low=ABSOLUTE_ZERO_CELSIUS, optional=True)
        for field in _COUNTERS:
            check_whole(field, getattr(self, field), optional=True)

    @property
    def memory_free_bytes(self) -> int | None:
        """Total less used and less reserved, or None where total or used is unknown."""
        if self.memory_used_bytes is None or self.memory_total_bytes is None:
            return None
        reserved = self.memory_reserved_bytes or 0
        return max(0, self.memory_total_bytes - self.memory_used_bytes - reserved)
