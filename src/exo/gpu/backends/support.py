"""How far each backend was shown to work, and on what: the record that tests left."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

ABILITIES = ("finding", "telemetry", "processes", "faults", "memory", "compute", "pinning")
"""What a backend can be shown to do, in the order of the table."""

LEVELS = ("hardware", "software driver", "captured", "fake", "never run")
"""How something was shown, best first. "software driver": a real driver without a GPU."""

_RECORD = Path(__file__).with_name("support.json")


@cache
def record(path: Path = _RECORD) -> dict[str, dict[str, dict[str, str]]]:
    """Backend -> ability -> ``level``, ``model``, ``driver``, ``date`` of the best showing."""
    return msgspec.json.decode(path.read_bytes())


def shown(backend: str) -> dict[str, dict[str, str]]:
    """Ability -> how it was last shown; abilities that the backend does not offer are absent."""
    return record().get(backend, {})


def support_level(backend: str) -> str:
    """What a device may claim: "full", "partial" or "experimental".

    Full: all was shown on hardware. Partial: a real driver answered at least once.
    """
    levels = [showing["level"] for showing in shown(backend).values()]
    if levels and all(level == "hardware" for level in levels):
        return "full"
    if any(level in {"hardware", "software driver"} for level in levels):
        return "partial"
    return "experimental"
