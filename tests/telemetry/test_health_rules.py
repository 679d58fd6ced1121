"""Rules are data: what cannot be meant is refused when they are written."""

from __future__ import annotations

import msgspec
import pytest

from exo.gpu.telemetry.health.rules import DEFAULT_RULES, LOOKS, Rule, stale_after
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.health import Health

WELL = {
    "name": "hot memory",
    "looks_at": "memory_temperature_celsius",
    "above": 95,
    "until": 93,
    "health": Health.DEGRADED,
    "message": "its memory is hot",
}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": ""}, InvalidValue),
        ({"message": " "}, InvalidValue),
        ({"looks_at": "memory_temprature_celsius"}, UnknownName),
        ({"limit": "warn"}, UnknownName),
        ({"above": float("nan")}, InvalidValue),
        ({"until": 96}, InvalidValue),
        ({"hold_seconds": -1}, InvalidValue),
        ({"window_seconds": 5}, InvalidValue),
        ({"looks_at": "rise.corrected_errors"}, InvalidValue),
        ({"health": Health.OK}, InvalidValue),
        ({"assumed_health": Health.OK}, InvalidValue),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(change, error):
    """Rule: names must be known, thresholds in order, windows for counters only, no rule says ok."""
    assert Rule(**WELL).looks_at in LOOKS
    with pytest.raises(error):
        Rule(**WELL | change)


def test_the_rules_are_named_differently_and_survive_the_wire():
    """Rule: each default rule has a name of its own, and is nothing but data."""
    assert len({rule.name for rule in DEFAULT_RULES}) == len(DEFAULT_RULES)
    for rule in DEFAULT_RULES:
        assert msgspec.convert(msgspec.to_builtins(rule), Rule) == rule


def test_stale_is_thirty_seconds_or_three_cadences():
    """Rule: the longer of the two counts."""
    assert (stale_after(1.0), stale_after(10.0), stale_after(60.0)) == (30.0, 30.0, 180.0)
