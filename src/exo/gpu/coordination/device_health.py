"""How well registered devices are: by what was read of them over time, and by their own word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from exo.gpu.telemetry.health.book import HealthBook, assess, log_event
from exo.gpu.telemetry.health.pulse import PulseBoard
from exo.gpu.vocabulary.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.telemetry_protocol import Heartbeat
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import HealthEvent
    from exo.gpu.vocabulary.metrics import GPUMetrics


class DeviceHealth:
    """The caller bounds the number of devices, and keeps two threads from calling at once."""

    def __init__(self, *, clock: Callable[[], float], stale_after_seconds: float) -> None:
        self._clock = clock
        self._stale_after_seconds = stale_after_seconds
        self._book = HealthBook(clock=clock, max_devices=sys.maxsize)
        self._pulses = PulseBoard(clock=clock, stale_after_seconds=stale_after_seconds)

    def watch(self, device: GPUDevice) -> None:
        """Judge a device by its own limits from now on."""
        self._book.watch(device)

    def forget(self, device_id: str) -> None:
        """Drop all that is known of a device; harmless for one never heard of."""
        self._book.forget(device_id)
        self._pulses.forget(device_id)

    def observe(self, newest: GPUMetrics) -> list[HealthEvent]:
        """Take the newest sample of a device, received now; the changes, which are logged."""
        events = self._book.observe(newest, self._clock())
        for event in events:
            log_event(event)
        return events

    def hear(self, heartbeat: Heartbeat) -> None:
        """Take a device's own word of whether it can be used."""
        fallback = "it reports itself as not available"
        trouble = "" if heartbeat.is_available else heartbeat.error_message or fallback
        self._pulses.take(heartbeat.device_id, heartbeat.timestamp, trouble)

    def judge(
        self, device: GPUDevice, sample: GPUMetrics | None, age_seconds: float | None
    ) -> tuple[Health, str]:
        """Health and reasons; its own word that it cannot be used counts more than any reading."""
        trouble = self._pulses.trouble(device.device_id)
        if trouble:
            return Health.FAILED, trouble
        if age_seconds is None or age_seconds > self._stale_after_seconds:
            return assess(sample, age_seconds, self._stale_after_seconds, device=device)
        verdict = self._book.verdict(device.device_id)
        return verdict.health, "; ".join(verdict.reasons)
