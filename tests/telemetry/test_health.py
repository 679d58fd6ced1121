"""The verdict: what the newest sample and its age say of a device."""

from __future__ import annotations

import pytest

from exo.gpu.telemetry.health import assess
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import Health

AWAKE = GPUMetrics("cuda:0", 1.0)
ASLEEP = GPUMetrics("cuda:0", 1.0, sleeping=True)


@pytest.mark.parametrize(
    ("sample", "age", "expected"),
    [
        (None, None, (Health.OK, "no sample yet")),
        (AWAKE, 0.0, (Health.OK, "")),
        (AWAKE, 30.0, (Health.OK, "")),
        (AWAKE, 45.0, (Health.LOST, "no sample for 45 s")),
        (ASLEEP, 1.0, (Health.SLEEPING, "powered down, and not woken for a reading")),
        (ASLEEP, 45.0, (Health.LOST, "no sample for 45 s")),
    ],
)
def test_verdict(sample, age, expected):
    """A silent device is lost whatever it said last; a sleeping one is well."""
    assert assess(sample, age) == expected


def test_the_limit_may_be_set():
    assert assess(AWAKE, 45.0, 60.0) == (Health.OK, "")
