"""The verdict on one sample: what it and its age say of a device, without any history."""

from __future__ import annotations

import pytest

from exo.gpu.telemetry.health.book import assess
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.health import ThrottleKind
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import Health

AWAKE = GPUMetrics("cuda:0", 1.0)
ASLEEP = GPUMetrics("cuda:0", 1.0, sleeping=True)


def card(**fields) -> GPUDevice:
    return GPUDevice("cuda:0", "Card", "NVIDIA", "cuda", **fields)


def at(celsius: float | None, **fields) -> GPUMetrics:
    return GPUMetrics("cuda:0", 1.0, temperature_celsius=celsius, **fields)


@pytest.mark.parametrize(
    ("sample", "age", "expected"),
    [
        (None, None, (Health.OK, "no sample yet")),
        (AWAKE, 0.0, (Health.OK, "")),
        (AWAKE, 30.0, (Health.OK, "")),
        (AWAKE, 45.0, (Health.LOST, "no sample for more than 30 s")),
        (ASLEEP, 1.0, (Health.SLEEPING, "powered down, and not woken for a reading")),
        (ASLEEP, 45.0, (Health.LOST, "no sample for more than 30 s")),
    ],
)
def test_verdict(sample, age, expected):
    """Rule: a silent device is lost whatever it said last; a sleeping one is well."""
    assert assess(sample, age) == expected


def test_the_limit_may_be_set():
    """Rule: who samples less often sets a longer limit."""
    assert assess(AWAKE, 45.0, 60.0) == (Health.OK, "")


@pytest.mark.parametrize(
    ("device", "celsius", "health"),
    [
        (None, 80.0, Health.OK),
        (None, 80.5, Health.DEGRADED),
        (None, 95.0, Health.DEGRADED),
        (card(), 95.0, Health.DEGRADED),
        (card(warn_celsius=87.0, critical_celsius=92.0), 86.0, Health.OK),
        (card(warn_celsius=87.0, critical_celsius=92.0), 88.0, Health.DEGRADED),
        (card(warn_celsius=87.0, critical_celsius=92.0), 93.0, Health.FAILED),
        (card(warn_celsius=94.0), 93.0, Health.OK),
        (card(warn_celsius=94.0), 140.0, Health.DEGRADED),
        (card(critical_celsius=70.0), 71.0, Health.FAILED),
        (card(device_class=DeviceClass.HOST), 99.0, Health.OK),
        (card(), None, Health.OK),
    ],
)
def test_a_limit_of_its_own_keeps_work_away_and_an_assumed_one_only_puts_it_behind(
    device, celsius, health
):
    """Rule: above 80 C degraded; failed only above what the device itself calls critical."""
    assert assess(at(celsius), 1.0, device=device)[0] is health


def test_the_worst_wins_and_every_reason_is_told():
    """Rule: reasons come the worst first, and say whose limit it is."""
    device = card(warn_celsius=87.0, critical_celsius=92.0)
    sample = at(93.0, throttle_kinds=(ThrottleKind.THERMAL, ThrottleKind.POWER_LIMIT))
    assert assess(sample, 1.0, device=device) == (
        Health.FAILED,
        "critically hot: above 92 C (its own limit); hot: above 87 C (its own limit); "
        "slowed down by heat",
    )


@pytest.mark.parametrize(
    ("kinds", "health"),
    [
        (None, Health.OK),
        ((), Health.OK),
        ((ThrottleKind.POWER_LIMIT,), Health.OK),
        ((ThrottleKind.THERMAL,), Health.DEGRADED),
        ((ThrottleKind.POWER_BRAKE,), Health.DEGRADED),
        ((ThrottleKind.HARDWARE,), Health.DEGRADED),
    ],
)
def test_throttling_that_is_as_meant_is_no_fault(kinds, health):
    """Rule: working at the power limit is well; heat, a power brake and a hardware signal are not."""
    assert assess(at(None, throttle_kinds=kinds), 1.0)[0] is health


def test_what_cannot_be_read_has_failed_whatever_it_said_before():
    """Rule: an old sample says nothing beside a read that fails."""
    assert assess(at(99.0), 1.0, failure="gone") == (Health.FAILED, "it cannot be read: gone")
    assert assess(None, None, failure="gone")[0] is Health.FAILED
    assert assess(AWAKE, 99.0, failure="gone")[0] is Health.FAILED
