"""What the collector answers beside samples: plain frozen figures, ready for JSON."""

from __future__ import annotations

from typing import Any

import msgspec


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Base of these values: a figure to which nothing contributed is None, never 0."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return msgspec.to_builtins(self)


class Statistics(Figures, frozen=True, kw_only=True):
    """One reading over a window, of one device or of a group.

    ``mean`` to ``p95`` are over the values as they came (percentiles between two values are
    interpolated linearly), in the reading's unit. ``slope_per_second`` is the least-squares line,
    in a group around each device's own middle. ``time_weighted_mean`` is the trapezoid integral
    over ``covered_seconds``, the time between neighbours that are no more than three cadences
    apart; a longer hole counts in ``gap_count`` and is not integrated over. ``sum_of_means`` adds
    up the devices' own time-weighted means: what a group drew or held on average.
    """

    metric: str
    window_seconds: float | None
    device_count: int
    """Devices that gave at least one value."""
    count: int
    mean: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    p50: float | None = None
    p95: float | None = None
    slope_per_second: float | None = None
    time_weighted_mean: float | None = None
    sum_of_means: float | None = None
    covered_seconds: float = 0.0
    """Added up over the devices of a group."""
    gap_count: int = 0


class Aggregate(Figures, frozen=True, kw_only=True):
    """The newest samples of a group of devices, added up; memory of a shared pool counts once.

    A stale device counts in ``device_count`` and ``stale_count`` and in no other figure.
    """

    device_count: int
    """Devices of which there is a sample."""
    stale_count: int
    total_memory_bytes: int | None
    used_memory_bytes: int | None
    available_memory_bytes: int | None
    """Total less used and less reserved, where all of a device's are known."""
    average_utilization_percent: float | None
    average_temperature_celsius: float | None
    maximum_temperature_celsius: float | None
    total_power_watts: float | None
    reporting: dict[str, int]
    """How many devices gave each reading."""


class Refusal(Figures, frozen=True, kw_only=True):
    """One value of a batch that cannot be, and was left out."""

    index: int
    """Of the sample within its batch."""
    field: str
    """``device_id``, ``timestamp`` or ``received_at`` where the whole sample was left out."""
    value: str
    expected: str


class BatchResult(Figures, frozen=True, kw_only=True):
    """What became of a batch; ``refusals`` tells the first of what was left out."""

    sample_count: int
    """Samples kept."""
    reading_count: int
    """Known values kept."""
    refused_sample_count: int = 0
    refused_reading_count: int = 0
    refusals: tuple[Refusal, ...] = ()
