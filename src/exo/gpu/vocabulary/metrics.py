"""What was read from a device at one moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import ThrottleKind
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    "encoder_percent",
    "decoder_percent",
    "performance_state",
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
_PERCENTAGES = (
    "compute_utilization_percent",
    "memory_utilization_percent",
    "fan_percent",
    "encoder_percent",
    "decoder_percent",
)
_TEMPERATURES = (
    "temperature_celsius",
    "memory_temperature_celsius",
    "hotspot_temperature_celsius",
)
_WHOLE = (
    "memory_used_bytes",
    "memory_total_bytes",
    "memory_reserved_bytes",
    "corrected_errors",
    "uncorrected_errors",
    "pcie_generation",
    "pcie_width",
    "performance_state",
)


class Bound(NamedTuple):
    """What a reading can be: finite, ``low`` to ``high`` (both included), perhaps whole."""

    low: float = 0.0
    high: float = math.inf
    whole: bool = False


BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(_WHOLE, Bound(whole=True)),
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
            there is, or a percentage outside 0..100.

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
    throttle_kinds: tuple[ThrottleKind, ...] | None = None
    """The same in words that all vendors share; empty: nothing that matters; None: not known."""
    corrected_errors: int | None = None
    """ECC: a counter of corrected memory errors; a step back is a reset."""
    uncorrected_errors: int | None = None
    """ECC: a counter of memory errors that were not corrected."""
    pcie_generation: int | None = None
    pcie_width: int | None = None
    carried_readings: tuple[str, ...] = ()
    """Names of the readings that were not taken now: they are those of the sample before, since
    they are dear to read or seldom move. A sampler bounds their age by its slow cadence."""
    encoder_percent: float | None = None
    """Share of time in which the video encoder worked."""
    decoder_percent: float | None = None
    performance_state: int | None = None
    """0 is the fastest, a larger number is slower (``nvidia-smi``'s P-state)."""

    def __post_init__(self) -> None:
        """Check every reading."""
        check_text("device_id", self.device_id)
        check_number("timestamp", self.timestamp)
        for field in _WHOLE:
            check_whole(field, getattr(self, field), optional=True)
        used, total = self.memory_used_bytes, self.memory_total_bytes
        if used is not None and total is not None and used > total:
            expected = f"at most memory_total_bytes ({total!r})"
            raise InvalidValue("memory_used_bytes", used, expected)
        for field in _AMOUNTS:
            check_number(field, getattr(self, field), low=0, optional=True)
        for field in _PERCENTAGES:
            check_number(field, getattr(self, field), low=0, high=100, optional=True)
        for field in _TEMPERATURES:
            check_number(field, getattr(self, field), low=ABSOLUTE_ZERO_CELSIUS, optional=True)
        for field in self.carried_readings:
            check_text("carried_readings", field)

    @property
    def memory_free_bytes(self) -> int | None:
        """Total less used and less reserved, or None where total or used is unknown."""
        if self.memory_used_bytes is None or self.memory_total_bytes is None:
            return None
        reserved = self.memory_reserved_bytes or 0
        return max(0, self.memory_total_bytes - self.memory_used_bytes - reserved)


def carry(
    values: dict[str, Any], missing: dict[str, str], before: GPUMetrics, names: Iterable[str]
) -> None:
    """Complete the readings of a sample to be by those of the one before, and name them.

    ``names`` are the readings that were not taken. What was missing before is missing now, for
    the same reason.
    """
    carried: list[str] = []
    for name in names:
        value = getattr(before, name)
        if value is not None:
            values[name] = value
            carried.append(name)
        elif name in before.missing_reasons:
            missing[name] = before.missing_reasons[name]
    values["carried_readings"] = tuple(carried)
