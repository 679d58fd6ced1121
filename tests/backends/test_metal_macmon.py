"""Readings of Apple's GPUs: macmon's sample in all its versions, and a macmon that misbehaves.

The sample is written after the fields that macmon documents; no Mac was asked.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.backends import macmon
from exo.gpu.vocabulary.errors import ReadingMissing
from exo.gpu.vocabulary.metrics import GPUMetrics

SAMPLE = Path(__file__).with_name("macmon-0.8.1.json")


def installed(folder: Path, script: str) -> dict[str, str]:
    """An environment in which macmon is this shell script."""
    program = folder / "macmon"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def without(*names: str) -> dict[str, Any]:
    """The sample less some of its fields."""
    told = json.loads(SAMPLE.read_text())
    return {name: value for name, value in told.items() if name not in names}


def test_a_sample_is_read(tmp_path: Path) -> None:
    """Rule: one sample is asked for, and its fields come out in base units."""
    environ = installed(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {SAMPLE}')
    values, missing = macmon.readings(macmon.sample(environ))
    assert values == {
        "power_watts": 6.25,
        "power_window_seconds": macmon.WINDOW_SECONDS,
        "clock_rate_mhz": 700,
        "temperature_celsius": 47.5,
        "fan_percent": 50,
        "compute_utilization_percent": 75,
        "utilization_is_lower_bound": False,
    }
    assert missing == {}
    assert (tmp_path / "asked").read_text().split() == ["pipe", "-s", "1", "-i", "200"]


@pytest.mark.parametrize(
    ("told", "percent"),
    [
        (without("gpu_active_ratio"), 37.5),  # scaled by the clock, as 0.8 calls it
        (without("gpu_active_ratio", "gpu_freq_mhz", "gpu_usage_ratio"), 37.5),  # up to 0.7
        ({"gpu_scaled_ratio": 0.25, "gpu_freq_mhz": 700}, 25),  # after 0.8
    ],
)
def test_names_of_all_versions_are_understood(told: dict[str, Any], percent: float) -> None:
    """Rule: the old pair and the new names mean the same; a scaled share is a lower bound."""
    values, _ = macmon.readings(told)
    assert values["compute_utilization_percent"] == percent
    assert values["utilization_is_lower_bound"]
    assert values["clock_rate_mhz"] == 700


def test_what_a_machine_lacks_is_missing() -> None:
    """Rule: a temperature of 0 is no sensor, and a Mac without fans has no fan speed."""
    values, missing = macmon.readings({"temp": {"gpu_temp_avg": 0.0}, "fans": [], "gpu_power": -1})
    assert values == {}
    assert set(missing) == {
        "power_watts",
        "clock_rate_mhz",
        "temperature_celsius",
        "fan_percent",
        "compute_utilization_percent",
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo garbage", "printed 'garbage'"),
        ("echo '[1, 2]'", "which is no sample"),
        ("true", "printed ''"),
        ("echo 'no IOReport here' >&2; exit 3", "failed with 3: no IOReport here"),
        ("kill -9 $$", "failed with -9"),
    ],
)
def test_a_macmon_that_fails_is_named(tmp_path: Path, script: str, reason: str) -> None:
    """Rule: what is no sample ends in a reason, with the program's own words."""
    with pytest.raises(ReadingMissing, match=reason):
        macmon.sample(installed(tmp_path, script))


def test_a_macmon_that_hangs_is_ended(tmp_path: Path) -> None:
    """Rule: the deadline holds, whatever the child and its children keep open."""
    started = time.monotonic()
    with pytest.raises(ReadingMissing, match=r"no sample within 0\.2 s"):
        macmon.sample(installed(tmp_path, "sleep 60 & sleep 60"), seconds=0.2)
    assert time.monotonic() - started < 10


def test_a_macmon_that_is_absent_or_no_program_is_named(tmp_path: Path) -> None:
    """Rule: without macmon the reason says how to install it."""
    with pytest.raises(ReadingMissing, match="not installed: brew install macmon"):
        macmon.sample({"PATH": str(tmp_path)})
    (tmp_path / "macmon").write_bytes(b"\x00\x01")
    (tmp_path / "macmon").chmod(0o755)
    with pytest.raises(ReadingMissing, match="does not start"):
        macmon.sample({"PATH": str(tmp_path)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = ("temp", "fans", "gpu_usage", "gpu_freq_mhz", "gpu_active_ratio", "gpu_power")


@given(told=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)))
def test_no_sample_breaks_the_reader(told: dict[str, Any]) -> None:
    """Rule: whatever the fields hold, readings are valid or missing."""
    values, missing = macmon.readings(told)
    GPUMetrics("metal:0", 0.0, **values, missing_reasons=missing)
