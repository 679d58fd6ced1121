"""What we know now: the newest sample of each device and a bounded history behind it."""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS
from exo.gpu.vocabulary.units import check_number, check_whole

# Ten times the largest cluster aimed at; a sender that invents ids cannot fill the memory.
MAX_DEVICES = 10_000


class _Record:
    """One device: its newest sample, when that was received, and its history by sender's time."""

    __slots__ = ("history", "latest", "received_at")

    def __init__(self, sample: GPUMetrics, received_at: float) -> None:
        self.latest = sample
        self.received_at = received_at
        self.history = [sample]


class TelemetryCollector:
    """Keeps samples by device id; ids are taken as they are, so ``rig2/cuda:0`` is another device.

    Samples are ordered by their sender's timestamp: a late one finds its place in the history and
    does not replace a newer one. Age is judged by the time of receipt on ``clock``. Where nothing
    newer came for ``stale_after_seconds``, the next sample is taken as the newest whatever its
    timestamp, since the sender's clock was then set back. Calls from several threads are safe, and
    none waits for anything slower than another call.
    """

    def __init__(
        self,
        max_history: int = 100,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_devices: int = MAX_DEVICES,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> None:
        """Keep ``max_history`` samples of each of the ``max_devices`` heard from last.

        Raises:
            InvalidValue: for a bound below 1 or a stale limit that is not a number of seconds.

        """
        check_whole("max_history", max_history, low=1)
        check_whole("max_devices", max_devices, low=1)
        check_number("stale_after_seconds", stale_after_seconds, low=0)
        self._max_history = max_history
        self._max_devices = max_devices
        self._stale_after_seconds = stale_after_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._records: OrderedDict[str, _Record] = OrderedDict()

    async def record_metrics(self, metrics: GPUMetrics) -> None:
        """Keep a sample; other tasks get their turn first, so a loop of calls starves nobody.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        from anyio import lowlevel

        await lowlevel.checkpoint()
        self.observe(metrics)

    def observe(self, metrics: GPUMetrics) -> None:
        """Keep a sample, received now.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        if not isinstance(metrics, GPUMetrics):
            raise InvalidValue("metrics", metrics, "a GPUMetrics")
        now = self._clock()
        with self._lock:
            record = self._records.get(metrics.device_id)
            if record is None:
                self._records[metrics.device_id] = _Record(metrics, now)
                while len(self._records) > self._max_devices:
                    self._records.popitem(last=False)
                return
            self._records.move_to_end(metrics.device_id)
            self._add(record, metrics, now)

    def _add(self, record: _Record, metrics: GPUMetrics, now: float) -> None:
        bisect.insort_right(record.history, metrics, key=lambda sample: sample.timestamp)
        del record.history[: -self._max_history]
        stale = now - record.received_at > self._stale_after_seconds
        if metrics.timestamp >= record.latest.timestamp or stale:
            record.latest = metrics
            record.received_at = now

    def forget(self, device_id: str) -> None:
        """Drop all that is known of a device; harmless for one never heard of."""
        with self._lock:
            self._records.pop(device_id, None)

    def get_metrics(self, device_id: str) -> GPUMetrics | None:
        """The newest sample, however old, or None."""
        with self._lock:
            record = self._records.get(device_id)
            return None if record is None else record.latest

    def get_metrics_history(self, device_id: str) -> list[GPUMetrics]:
        """The samples kept, oldest first by their sender's timestamp."""
        with self._lock:
            record = self._records.get(device_id)
            return [] if record is None else list(record.history)

    def age_seconds(self, device_id: str) -> float | None:
        """Seconds since the newest sample was received, or None where there is none."""
        with self._lock:
            record = self._records.get(device_id)
            return None if record is None else max(0.0, self._clock() - record.received_at)

    def get_aggregated_metrics(self) -> dict[str, Any]:
        """Sums and means over the newest sample of each device; empty where there is none.

        A device that does not give a reading takes no part in it, and a figure to which none
        contributed is None. ``reporting`` counts the devices that gave each reading;
        ``stale_count`` those whose newest sample says nothing about now.
        """
        with self._lock:
            now = self._clock()
            samples = [record.latest for record in self._records.values()]
            stale = sum(
                now - record.received_at > self._stale_after_seconds
                for record in self._records.values()
            )
        return {**_aggregate(samples), "stale_count": stale} if samples else {}


def _aggregate(samples: list[GPUMetrics]) -> dict[str, Any]:
    columns = {
        name: [value for sample in samples if (value := getattr(sample, name)) is not None]
        for name in READINGS
    }
    free = [sample.memory_free_bytes for sample in samples]
    return {
        "device_count": len(samples),
        "total_memory_bytes": _total(columns["memory_total_bytes"]),
        "used_memory_bytes": _total(columns["memory_used_bytes"]),
        "available_memory_bytes": _total(value for value in free if value is not None),
        "average_utilization_percent": _mean(columns["compute_utilization_percent"]),
        "average_temperature_celsius": _mean(columns["temperature_celsius"]),
        "total_power_watts": _total(columns["power_watts"]),
        "timestamp": datetime.now(tz=UTC).isoformat(),
        "reporting": {name: len(values) for name, values in columns.items()},
    }


def _total(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) if known else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
