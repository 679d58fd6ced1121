"""Readings of an Apple GPU from ``macmon pipe``, a program that needs no privileges.

Fields are those of macmon's readme. Version 0.8.0 renamed them and 0.8.1 brought the old names
back beside the new ones; all are understood.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from exo.gpu.vocabulary.errors import ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROGRAM = "macmon"

# What one sample is an average over. The counters behind it are useless below 50 ms.
WINDOW_SECONDS = 0.2

# A sample takes its window and about a third of a second to start.
DEADLINE_SECONDS = 3.0

_INSTALL = "brew install macmon"
_WHOLE = 100


def sample(
    environ: Mapping[str, str], *, program: str = PROGRAM, seconds: float = DEADLINE_SECONDS
) -> dict[str, Any]:
    """One sample as macmon writes it; the program is looked up on the PATH of ``environ``.

    Raises:
        ReadingMissing: when macmon is not installed, hangs, fails or prints no sample.

    """
    path = shutil.which(program, path=environ.get("PATH", os.defpath))
    if path is None:
        raise ReadingMissing(f"{program} is not installed: {_INSTALL}")
    interval = str(round(WINDOW_SECONDS * 1000))
    try:
        child = subprocess.Popen(
            [path, "pipe", "-s", "1", "-i", interval],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as error:
        raise ReadingMissing(f"{path} does not start: {error.strerror}") from error
    with child:
        try:
            output, complaint = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # The whole group: a child of its own would keep the pipe open.
            with suppress(ProcessLookupError, PermissionError):  # it ended after all
                os.killpg(child.pid, signal.SIGKILL)
            raise ReadingMissing(f"{program} gave no sample within {seconds:g} s") from None
    if child.returncode:
        last = complaint.decode(errors="replace").strip()[-200:]
        raise ReadingMissing(f"{program} failed with {child.returncode}: {last or 'no message'}")
    return _parsed(output)


def readings(told: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Readings by field name of ``GPUMetrics``, and why the others are missing."""
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    calls: dict[str, Callable[[], float | None]] = {
        "power_watts": lambda: _number(told.get("gpu_power")),
        "clock_rate_mhz": lambda: _first(told.get("gpu_freq_mhz"), _pair(told, 0)),
        # Without sensors macmon writes 0.
        "temperature_celsius": lambda: _number(_inside(told, "temp", "gpu_temp_avg")) or None,
        "fan_percent": lambda: _fan_percent(told.get("fans")),
    }
    for field, call in calls.items():
        value = call()
        if value is None:
            missing[field] = "macmon does not tell it on this machine"
        else:
            values[field] = value
    if "power_watts" in values:
        values["power_window_seconds"] = WINDOW_SECONDS
    _add_utilization(told, values, missing)
    return values, missing


def _add_utilization(
    told: Mapping[str, Any], values: dict[str, Any], missing: dict[str, str]
) -> None:
    """The share of time at work; older versions scale it by the clock, which is less."""
    active = _number(told.get("gpu_active_ratio"))
    scaled = _first(told.get("gpu_scaled_ratio"), told.get("gpu_usage_ratio"), _pair(told, 1))
    share = scaled if active is None else active
    if share is None:
        missing["compute_utilization_percent"] = "macmon does not tell it on this machine"
        return
    values["compute_utilization_percent"] = min(100.0, _WHOLE * share)
    values["utilization_is_lower_bound"] = active is None


def _parsed(output: bytes) -> dict[str, Any]:
    text = output.decode(errors="replace").strip()
    line = text.splitlines()[-1] if text else ""
    try:
        told = json.loads(line)
    except ValueError:
        raise ReadingMissing(f"macmon printed {line[:60]!r}, which is no sample") from None
    if not isinstance(told, dict):
        raise ReadingMissing(f"macmon printed {line[:60]!r}, which is no sample")
    return cast("dict[str, Any]", told)


def _fan_percent(fans: Any) -> float | None:
    """The fastest fan's speed as a share of its largest."""
    shares: list[float] = []
    for fan in cast("list[Any]", fans) if isinstance(fans, list) else []:
        speed, most = _number(_inside(fan, "rpm")), _number(_inside(fan, "max_rpm"))
        if speed is not None and most:
            shares.append(min(100.0, round(_WHOLE * speed / most, 1)))
    return max(shares, default=None)


def _inside(value: Any, *names: str) -> Any:
    for name in names:
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


def _pair(told: Mapping[str, Any], place: int) -> Any:
    """Clock or share of ``gpu_usage``, the name of old."""
    pair = told.get("gpu_usage")
    if not isinstance(pair, list):
        return None
    values = cast("list[Any]", pair)
    return values[place] if len(values) > place else None


def _first(*values: Any) -> float | None:
    return next((number for number in map(_number, values) if number is not None), None)


def _number(value: Any) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if 0 <= value < float("inf") else None
