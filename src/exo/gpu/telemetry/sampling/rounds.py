"""One round: all devices are asked at once, each on its own thread, with one deadline."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("exo.gpu.telemetry.sampler")


class Samples(msgspec.Struct, frozen=True):
    """What one round gave: a sample or a reason for every device that was asked."""

    samples: dict[str, GPUMetrics]
    failures: dict[str, str]


class DeviceSampler:
    """Asks devices for samples and remembers which of them still hang.

    A driver call cannot be interrupted. One that outlasts its deadline is left behind on its
    daemon thread, its late answer is dropped, and the device is not asked again while it hangs:
    at most one thread per device is ever lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hanging: dict[str, _Call] = {}

    @property
    def hanging(self) -> tuple[str, ...]:
        """Ids of the devices whose last call has not returned."""
        with self._lock:
            return tuple(name for name, call in self._hanging.items() if call.runs)

    def sample(
        self, readers: Mapping[str, Callable[[], GPUMetrics]], *, deadline_seconds: float = 2.0
    ) -> Samples:
        """Read every device at once; returns within ``deadline_seconds`` whatever drivers do."""
        ends = time.monotonic() + deadline_seconds
        failures: dict[str, str] = {}
        calls: dict[str, _Call] = {}
        with self._lock:
            for device_id, reader in readers.items():
                old = self._hanging.pop(device_id, None)
                if old is not None and old.runs:
                    self._hanging[device_id] = old
                    failures[device_id] = f"a call begun {old.seconds:.0f} s ago still hangs"
                else:
                    calls[device_id] = _Call(device_id, reader)
        samples: dict[str, GPUMetrics] = {}
        for device_id, call in calls.items():
            call.wait(ends - time.monotonic())
            sample, reason = call.answer
            if sample is not None:
                samples[device_id] = sample
            elif reason is not None:
                failures[device_id] = reason
            else:
                failures[device_id] = f"no answer within {deadline_seconds:g} s"
                logger.warning("%s gave no answer within %g s", device_id, deadline_seconds)
                with self._lock:
                    self._hanging[device_id] = call
        return Samples(samples, failures)


class _Call:
    """One driver call on its own daemon thread."""

    def __init__(self, device_id: str, reader: Callable[[], GPUMetrics]) -> None:
        self.answer: tuple[GPUMetrics | None, str | None] = (None, None)
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._run,
            args=(device_id, reader),
            name=f"exo-gpu-read-{device_id}",
            daemon=True,
        )
        self._thread.start()

    @property
    def runs(self) -> bool:
        return not self._done.is_set()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def wait(self, seconds: float) -> None:
        self._done.wait(max(0.0, seconds))

    def _run(self, device_id: str, reader: Callable[[], GPUMetrics]) -> None:
        try:
            self.answer = (reader(), None)
        except Exception as error:
            # The vendor-read border: whatever a driver does costs this device's sample only.
            logger.debug("reading %s failed", device_id, exc_info=True)
            self.answer = (None, str(error) or type(error).__name__)
        self._done.set()
