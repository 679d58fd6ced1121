"""From readings to a verdict: whether a device can be relied on, and why not."""

from __future__ import annotations

from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS, Health


def assess(
    sample: GPUMetrics | None,
    age_seconds: float | None,
    stale_after_seconds: float = STALE_AFTER_SECONDS,
) -> tuple[Health, str]:
    """Judge a device by its newest sample and the time since it was received.

    A device that was never sampled is taken as sound, with the reason ``no sample yet``: its
    capabilities are known, and it is chosen behind every sampled one.
    """
    if sample is None or age_seconds is None:
        return Health.OK, "no sample yet"
    if age_seconds > stale_after_seconds:
        return Health.LOST, f"no sample for {age_seconds:.0f} s"
    if sample.sleeping:
        return Health.SLEEPING, "powered down, and not woken for a reading"
    return Health.OK, ""
