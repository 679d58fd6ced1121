"""The peers of bench_select.py: the same choice by a plain loop, over rows and over objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS, DeviceState, Health

if TYPE_CHECKING:
    from exo.gpu.vocabulary.request import Request

UNWELL = (Health.FAILED, Health.LOST)


class Plain:
    """A row: what a loop must know of one device, worked out beforehand."""

    __slots__ = (
        "busy",
        "celsius",
        "device_id",
        "free",
        "gflops",
        "labels",
        "leased",
        "received_at",
        "runtime",
        "total",
        "unwell",
    )

    def __init__(self, state: DeviceState) -> None:
        sample = state.sample
        assert sample is not None
        self.device_id = state.device.device_id
        self.runtime = state.device.runtime
        self.labels = state.settings.labels
        self.total: int = sample.memory_total_bytes or 0
        self.free: int = self.total - (sample.memory_used_bytes or 0)
        self.busy: float = sample.compute_utilization_percent or 0.0
        self.celsius: float = sample.temperature_celsius or 0.0
        self.gflops: float = state.measured_gflops or 0.0
        self.received_at: float = -(state.sample_age_seconds or 0.0)
        self.unwell = state.health in UNWELL or state.cordon is not None
        self.leased = any(lease.exclusive for lease in state.leases)


def loop_over_rows(rows: list[Plain], request: Request, now: float = 0.0) -> str | None:
    """The best device by one pass over rows: filters, score and ties as documented."""
    memory, runtime = request.memory_bytes or 0, request.runtime
    idle, hot = request.min_idle_percent or 0, request.max_temperature_celsius
    labels = request.labels
    best: Plain | None = None
    best_key: tuple[float, float, int] = (-1.0, 0.0, 0)
    for row in rows:
        if row.free < memory or (runtime is not None and row.runtime != runtime):
            continue
        if row.unwell or row.leased or now - row.received_at > STALE_AFTER_SECONDS:
            continue
        if 100 - row.busy < idle or (hot is not None and row.celsius > hot):
            continue
        if labels and not all(label in row.labels for label in labels):
            continue
        score = 0.6 * (row.free / row.total) + 0.4 * (1.0 - row.busy / 100.0)
        if row.celsius > 80.0:
            score *= max(0.1, 1.0 - (row.celsius - 80.0) / 40.0)
        if score < best_key[0]:
            continue
        key = (score, row.gflops, row.free)
        if key > best_key:
            best, best_key = row, key
    return None if best is None else best.device_id


def loop_over_objects(states: list[DeviceState], request: Request) -> str | None:
    """The same for a request for memory, over the very objects that our table is given."""
    memory = request.memory_bytes or 0
    best: DeviceState | None = None
    best_key: tuple[float, float, int] = (-1.0, 0.0, 0)
    for state in states:
        sample = state.sample
        if sample is None or state.health in UNWELL or state.cordon is not None:
            continue
        if (state.sample_age_seconds or 0.0) > STALE_AFTER_SECONDS:
            continue
        total = sample.memory_total_bytes or 0
        used = sample.memory_used_bytes or 0
        for lease in state.leases:
            used += lease.memory_bytes or 0
        free = total - used - (sample.memory_reserved_bytes or 0)
        if free < memory:
            continue
        busy, celsius = sample.compute_utilization_percent or 0, sample.temperature_celsius or 0
        score = 0.6 * (free / total) + 0.4 * (1.0 - busy / 100.0)
        if celsius > 80.0:
            score *= max(0.1, 1.0 - (celsius - 80.0) / 40.0)
        key = (score, state.measured_gflops or 0.0, free)
        if key > best_key:
            best, best_key = state, key
    return None if best is None else best.device.device_id
