"""Columns of block characters that show how a reading went; a gap stays empty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Eighths of a line, U+2581 to U+2588.
_BLOCKS = "▁▂▃▄▅▆▇█"
_STEPS = len(_BLOCKS)
_NOTHING = " "


def chart(
    values: Sequence[float | None], *, width: int, height: int = 1, low: float, high: float
) -> list[str]:
    """``height`` lines of ``width`` characters, the newest value at the right.

    ``low`` is the lowest block and not an empty place, which stands for unknown, NaN included.
    Values beyond ``low`` and ``high`` are drawn as these.
    """
    shown = list(values)[-width:] if width > 0 else []
    heights = [_height(value, low, high, _STEPS * height) for value in shown]
    pad = _NOTHING * max(0, width - len(shown))
    return [
        pad + "".join(_block(filled - _STEPS * line) for filled in heights)
        for line in reversed(range(height))
    ]


def _height(value: float | None, low: float, high: float, steps: int) -> int:
    """How many eighths are filled: 0 for unknown, 1 for the lowest value."""
    if value is None or not math.isfinite(value):
        return 0
    part = (value - low) / (high - low) if high > low else 0.0
    return 1 + round(min(1.0, max(0.0, part)) * (steps - 1))


def _block(eighths: int) -> str:
    return _NOTHING if eighths <= 0 else _BLOCKS[min(eighths, _STEPS) - 1]
