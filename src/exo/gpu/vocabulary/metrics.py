"""What was read from a device at one moment."""

from __future__ import annotations

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

ABSOLUTE_ZERO_CELSIUS = -273.15


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
        percent = self.compute_utilization_percent
        check_number("compute_utilization_percent", percent, low=0, high=100, optional=True)
        check_number("power_watts", self.power_watts, low=0, optional=True)
        celsius = self.temperature_celsius
        check_number("temperature_celsius", celsius, low=ABSOLUTE_ZERO_CELSIUS, optional=True)
        check_number("clock_rate_mhz", self.clock_rate_mhz, low=0, optional=True)

    @property
    def memory_free_bytes(self) -> int | None:
        """Total less used and less reserved, or None where total or used is unknown."""
        if self.memory_used_bytes is None or self.memory_total_bytes is None:
            return None
        reserved = self.memory_reserved_bytes or 0
        return max(0, self.memory_total_bytes - self.memory_used_bytes - reserved)
