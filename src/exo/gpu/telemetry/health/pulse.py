"""Whether each device says of itself that it can be used: the newest word of each counts."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS


class _Pulse(msgspec.Struct, frozen=True):
    """The newest word of a device: its sender's time, when it came, and what was wrong."""

    sent_at: float
    received_at: float
    trouble: str


class PulseBoard:
    """Keeps the newest word of each device, ordered by the sender's time as samples are.

    A word sent before the newest known is ignored, unless nothing came for
    ``stale_after_seconds``: then the sender's clock was set back. The caller bounds the number of
    devices, and keeps two threads from calling at once.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> None:
        """Nobody has said anything yet."""
        self._clock = clock
        self._stale_after_seconds = stale_after_seconds
        self._pulses: dict[str, _Pulse] = {}

    def take(self, device_id: str, sent_at: float, trouble: str = "") -> None:
        """Keep a word; ``trouble`` says why the device cannot be used, empty where it can."""
        now = self._clock()
        last = self._pulses.get(device_id)
        if last is not None:
            quiet = now - last.received_at > self._stale_after_seconds
            if sent_at < last.sent_at and not quiet:
                return
        self._pulses[device_id] = _Pulse(sent_at, now, trouble)

    def trouble(self, device_id: str) -> str:
        """Why the device cannot be used by its own word; empty where it never said so."""
        pulse = self._pulses.get(device_id)
        return "" if pulse is None else pulse.trouble

    def forget(self, device_id: str) -> None:
        """Drop what a device said; harmless for one never heard of."""
        self._pulses.pop(device_id, None)
