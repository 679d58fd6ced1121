"""What sampling tells: one observation for each time that a device was asked."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("exo.gpu.telemetry.sampler")


class Observation(msgspec.Struct, frozen=True):
    """What became of asking a device: a sample, or the reason why there is none."""

    device_id: str
    sample: GPUMetrics | None
    failure: str
    """Empty where there is a sample."""
    hanging: bool
    """True where the call has outlasted its deadline and has not returned."""
    received_at: float
    """When the reading ended, or the deadline passed: seconds of the sampler's monotonic clock."""


class Teller:
    """Hands observations to a sink that may raise, and to the log when a device's luck turns.

    Only :meth:`silence` may be called from another thread than the rest.
    """

    def __init__(self, sink: Callable[[Observation], None]) -> None:
        """No device has failed so far, nor has the sink."""
        self._sink = sink
        self._failing: set[str] = set()
        self._sink_fails = False
        self._silent = False

    def tell(self, observation: Observation) -> None:
        """Hand it on; an exception of the sink is logged, once for a row of them."""
        if self._silent:
            return
        self._log(observation)
        try:
            self._sink(observation)
        except Exception:  # a named border: what listens must not end what measures
            if not self._sink_fails:
                logger.exception("the sink of samples failed; sampling goes on")
            self._sink_fails = True
        else:
            self._sink_fails = False

    def forget(self, device_id: str) -> None:
        """Drop what is known of a device's failures."""
        self._failing.discard(device_id)

    def silence(self) -> None:
        """Hand on nothing more."""
        self._silent = True

    def _log(self, observation: Observation) -> None:
        """Say when a device begins to fail, and when it is read again."""
        device_id, failure = observation.device_id, observation.failure
        if failure and device_id not in self._failing:
            self._failing.add(device_id)
            logger.warning("%s cannot be read: %s", device_id, failure)
        elif not failure and device_id in self._failing:
            self._failing.discard(device_id)
            logger.info("%s is read again", device_id)
