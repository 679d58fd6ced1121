"""How a device is read over and over: dear readings seldom, power from energy where it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.backend import QuickTelemetryAbility
from exo.gpu.backends.counter_rates import CounterRates
from exo.gpu.vocabulary.errors import ReadingMissing
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS

if TYPE_CHECKING:
    from exo.gpu.backend import TelemetryAbility
    from exo.gpu.vocabulary.metrics import GPUMetrics

# A mean over a longer time says nothing of the present (see STALE_AFTER_SECONDS).
_LONGEST_CADENCES = 3
# Far above any device: a counter that grew faster has jumped.
_MOST_WATTS = 100_000.0


class DeviceReader:
    """Reads one device through its backend, for a sampler; not safe for threads.

    Where the backend can read quickly, dear readings are taken only when they are due. In between
    the last ones stand, and the sample names them in ``carried_readings``.
    """

    def __init__(self, backend: TelemetryAbility, device_id: str) -> None:
        """Nothing was read yet, so the first sample is a whole one."""
        self._backend = backend
        self._device_id = device_id
        self._before: GPUMetrics | None = None

    def __call__(self, dear: bool) -> GPUMetrics:
        """A sample, with dear readings taken now where they are ``dear``, that is due.

        Raises:
            BackendError: when the device gave nothing at all, with the driver's reason.

        """
        if dear or self._before is None or not isinstance(self._backend, QuickTelemetryAbility):
            sample = self._backend.read(self._device_id)
            self._before = None if sample.sleeping else sample
            return sample
        return self._backend.read_quickly(self._device_id, self._before)


class PowerFromEnergy:
    """Completes samples without ``power_watts`` by the growth of their ``energy_joules``.

    What the driver tells itself is never replaced.
    """

    def __init__(self) -> None:
        self._rates = CounterRates()

    def complete(
        self, sample: GPUMetrics, device_id: str, *, at: float, cadence_seconds: float
    ) -> GPUMetrics:
        """The sample, with the mean power since the one before and, as its window, that time.

        ``at`` is when it was read, on a monotonic clock. After a reset of the counter, and after
        a gap, there is no power, and ``missing_reasons`` says so.
        """
        energy = sample.energy_joules
        if sample.power_watts is not None or energy is None:
            self._rates.drop((device_id,))  # what it counted would be too old by the next time
            return sample
        longest = max(STALE_AFTER_SECONDS, _LONGEST_CADENCES * cadence_seconds)
        missing = dict(sample.missing_reasons)
        try:
            rate = self._rates.rate((device_id,), energy, at_seconds=at, longest_seconds=longest)
            if rate.per_second > _MOST_WATTS:
                raise ReadingMissing(f"the energy counter jumped by {rate.per_second:g} W")
        except ReadingMissing as reason:
            missing["power_watts"] = str(reason)
            return msgspec.structs.replace(sample, missing_reasons=missing)
        missing.pop("power_watts", None)
        missing.pop("power_window_seconds", None)
        return msgspec.structs.replace(
            sample,
            power_watts=rate.per_second,
            power_window_seconds=rate.seconds,
            missing_reasons=missing,
        )

    def forget(self, device_id: str) -> None:
        """Drop what was counted of a device; harmless for one never heard of."""
        self._rates.drop((device_id,))
