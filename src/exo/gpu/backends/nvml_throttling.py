"""Why an NVIDIA GPU holds its clock back: the bits of NVML's mask, and what they mean."""

from __future__ import annotations

from exo.gpu.vocabulary.health import ThrottleKind

# nvml.h: the bits of nvmlClocksEventReasons.
_REASONS: dict[int, tuple[str, ThrottleKind | None]] = {
    0x001: ("idle", None),
    0x002: ("application clocks", None),
    0x004: ("software power cap", ThrottleKind.POWER_LIMIT),
    0x008: ("hardware slowdown", ThrottleKind.HARDWARE),
    0x010: ("sync boost", None),
    0x020: ("software thermal slowdown", ThrottleKind.THERMAL),
    0x040: ("hardware thermal slowdown", ThrottleKind.THERMAL),
    0x080: ("hardware power brake", ThrottleKind.POWER_BRAKE),
    0x100: ("display clocks", None),
    0x200: ("board limit", ThrottleKind.POWER_LIMIT),
    0x400: ("reliability", None),
}

MEANINGS = dict(_REASONS.values())
"""Word of :func:`named` -> its kind, None for what is no trouble."""


def named(mask: int) -> tuple[str, ...]:
    """The reasons in a bit mask; a bit that nobody here knows keeps its number."""
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(_REASONS[bit][0] if bit in _REASONS else f"reason {bit:#x}" for bit in bits)
