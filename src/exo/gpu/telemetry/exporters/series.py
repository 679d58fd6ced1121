"""The written table of series: their names, types, units and where each figure comes from."""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "exo_gpu_"

_PERCENT, _MHZ, _GIGA = 0.01, 1e6, 1e9


class Series(NamedTuple):
    """One metric family, without its prefix; ``labels`` are fixed ones beside the device's."""

    name: str
    kind: str
    """``gauge`` or ``counter``."""
    text: str
    """What HELP says: what is measured, and what one has to know to read it rightly."""
    field: str = ""
    """The field of a sample that holds the figure; empty where it comes from elsewhere."""
    factor: float = 1.0
    """From the field's unit to the base unit of the series."""
    labels: tuple[tuple[str, str], ...] = ()


# Prometheus asks for base units, a unit's name at the end, and _total behind a counter:
# https://prometheus.io/docs/practices/naming/
SAMPLED: tuple[Series, ...] = (
    Series("memory_used_bytes", "gauge", "Device memory in use.", "memory_used_bytes"),
    Series("memory_total_bytes", "gauge", "Device memory in all.", "memory_total_bytes"),
    Series(
        "memory_reserved_bytes",
        "gauge",
        "Device memory that the driver keeps for itself, in neither used nor free.",
        "memory_reserved_bytes",
    ),
    Series(
        "utilization_ratio",
        "gauge",
        "Share of time in which work ran on the device; bound=lower: not all of it was visible.",
        "compute_utilization_percent",
        _PERCENT,
    ),
    Series(
        "memory_utilization_ratio",
        "gauge",
        "Share of time in which device memory was read or written, not how full it is.",
        "memory_utilization_percent",
        _PERCENT,
    ),
    Series("power_watts", "gauge", "Power drawn.", "power_watts"),
    Series("power_limit_watts", "gauge", "Power limit in force.", "power_limit_watts"),
    Series(
        "power_window_seconds",
        "gauge",
        "What power_watts is an average over; 0: a value of the instant.",
        "power_window_seconds",
    ),
    Series("energy_joules_total", "counter", "Energy drawn.", "energy_joules"),
    Series(
        "temperature_celsius",
        "gauge",
        "Temperature, by sensor.",
        "temperature_celsius",
        labels=(("sensor", "device"),),
    ),
    Series(
        "temperature_celsius",
        "gauge",
        "Temperature, by sensor.",
        "memory_temperature_celsius",
        labels=(("sensor", "memory"),),
    ),
    Series(
        "temperature_celsius",
        "gauge",
        "Temperature, by sensor.",
        "hotspot_temperature_celsius",
        labels=(("sensor", "hotspot"),),
    ),
    Series("clock_hertz", "gauge", "Clock rate of the compute units.", "clock_rate_mhz", _MHZ),
    Series("memory_clock_hertz", "gauge", "Clock rate of the memory.", "memory_clock_mhz", _MHZ),
    Series("fan_ratio", "gauge", "Fan speed, of its nominal highest.", "fan_percent", _PERCENT),
    Series(
        "memory_errors_total",
        "counter",
        "Memory errors that ECC found.",
        "corrected_errors",
        labels=(("type", "corrected"),),
    ),
    Series(
        "memory_errors_total",
        "counter",
        "Memory errors that ECC found.",
        "uncorrected_errors",
        labels=(("type", "uncorrected"),),
    ),
    Series("pcie_generation", "gauge", "PCI Express generation now in use.", "pcie_generation"),
    Series("pcie_lanes", "gauge", "PCI Express lanes now in use.", "pcie_width"),
    Series(
        "encoder_ratio",
        "gauge",
        "Share of time in which the video encoder worked.",
        "encoder_percent",
        _PERCENT,
    ),
    Series(
        "decoder_ratio",
        "gauge",
        "Share of time in which the video decoder worked.",
        "decoder_percent",
        _PERCENT,
    ),
    Series(
        "performance_state",
        "gauge",
        "Performance state; 0 is the fastest, a larger number is slower.",
        "performance_state",
    ),
)
"""What comes from a sample; those of one name stand together."""

INFO = Series("device_info", "gauge", "What the device is; join it to the others by uuid.")
UP = Series("up", "gauge", "1 when the device was read lately, 0 when it was not.")
# A time and not an age: an age stands still with whoever writes it, and looks young for ever.
SAMPLE_TIME = Series(
    "sample_timestamp_seconds",
    "gauge",
    "When the newest sample was taken, in Unix time by the clock of its machine.",
)
HEALTH = Series("health", "gauge", "1 for the state that the device is in, 0 for the others.")
CORDONED = Series("cordoned", "gauge", "1 when the device is kept out of scheduling.")
THROTTLE = Series("throttle_reason", "gauge", "1 for each reason that the driver gives now.")
THROTTLED = Series("throttled", "gauge", "1 for each kind of trouble that holds the clock back.")
LEASES = Series("leases", "gauge", "Leases on the device.")
LEASED_MEMORY = Series("leased_memory_bytes", "gauge", "Device memory that leases hold.")
SLOTS = Series("slots", "gauge", "How many jobs without declared memory the device takes at once.")
SPEED = Series(
    "measured_flops",
    "gauge",
    "FP32 operations a second that a probe measured under the present driver.",
    factor=_GIGA,
)
MISSING = Series("device_missing", "gauge", "1 for a device that was here before and is not now.")
BUILD_INFO = Series("build_info", "gauge", "The version that writes these lines.")

STATED: tuple[Series, ...] = (
    INFO,
    UP,
    SAMPLE_TIME,
    HEALTH,
    CORDONED,
    THROTTLE,
    THROTTLED,
    LEASES,
    LEASED_MEMORY,
    SLOTS,
    SPEED,
    MISSING,
    BUILD_INFO,
)
"""What does not come from a sample."""


def names() -> tuple[str, ...]:
    """Every metric name with its prefix, each once, in the order in which they are written."""
    ordered = (*STATED[:-2], *SAMPLED, *STATED[-2:])
    return tuple(dict.fromkeys(PREFIX + series.name for series in ordered))
