"""Sizes, durations and checked numbers: the one place where text becomes a number."""

from __future__ import annotations

import math
import re

from exo.gpu.vocabulary.errors import InvalidValue

# IEC 80000-13 binary prefixes and SI decimal ones; a bare letter is binary, as in GNU coreutils.
_FACTORS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _FACTORS[f"{_letter}ib"] = 1024**_power
    _FACTORS[f"{_letter}i"] = 1024**_power
    _FACTORS[_letter] = 1024**_power
    _FACTORS[f"{_letter}b"] = 1000**_power

_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z]*)\s*\Z")
_SIZE_FORM = 'a size such as "8GiB", "8GB", "500MiB" or a number of bytes'
_DURATION_FORM = 'a duration such as "30m", "90s", "1.5h" or a number of seconds'

# Far above any pool of memory, far below what a 64-bit signed column holds.
_LARGEST_SIZE = 2**62


def parse_size(text: str | int, field: str = "size") -> int:
    """Bytes of ``"8GiB"`` (2**30 each), ``"8GB"`` (10**9), ``"8G"`` (binary) or plain bytes.

    Raises:
        InvalidValue: naming ``field`` and the text, for anything else, negative or not finite.

    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise InvalidValue(field, text, _SIZE_FORM)
    if isinstance(text, int):
        size = text
    else:
        match = _NUMBER.match(text)
        factor = _FACTORS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise InvalidValue(field, text, _SIZE_FORM)
        size = int(match[1]) * factor if match[1].isdigit() else round(float(match[1]) * factor)
    if not 0 <= size <= _LARGEST_SIZE:
        raise InvalidValue(field, text, _SIZE_FORM)
    return size


def parse_duration(text: str | float, field: str = "duration") -> float:
    """Seconds of ``"30m"``, ``"90s"``, ``"1.5h"``, ``"250ms"`` or a plain number.

    Raises:
        InvalidValue: naming ``field`` and the text, for anything else, negative or not finite.

    """
    if isinstance(text, bool):
        raise InvalidValue(field, text, _DURATION_FORM)
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        match = _NUMBER.match(text)
        factor = _SECONDS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise InvalidValue(field, text, _DURATION_FORM)
        seconds = float(match[1]) * factor
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidValue(field, text, _DURATION_FORM)
    return seconds


def format_size(size_bytes: float | None) -> str:
    """Text for people in binary units, one decimal: ``"7.9 GiB"``; ``"-"`` for unknown."""
    if size_bytes is None:
        return "-"
    for letter in ("", "K", "M", "G", "T", "P"):
        if abs(size_bytes) < 1024 or letter == "P":
            break
        size_bytes /= 1024
    return f"{size_bytes:.1f} {letter}iB" if letter else f"{size_bytes:.0f} B"


def check_number(
    field: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    optional: bool = False,
) -> None:
    """Refuse what is not a finite number within ``low..high`` (both included).

    Raises:
        InvalidValue: naming ``field`` and ``value``.

    """
    if value is None and optional:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        bounds = "" if low == -math.inf and high == math.inf else f" within {low:g}..{high:g}"
        raise InvalidValue(field, value, f"a finite number{bounds}{' or None' if optional else ''}")


def check_whole(field: str, value: object, *, low: int = 0, optional: bool = False) -> None:
    """Refuse what is not a whole number of at least ``low``.

    Raises:
        InvalidValue: naming ``field`` and ``value``.

    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        kind = f"a whole number of at least {low}{' or None' if optional else ''}"
        raise InvalidValue(field, value, kind)


def check_text(field: str, value: object, *, empty: bool = False) -> None:
    """Refuse what is not text, and empty text unless ``empty``.

    Raises:
        InvalidValue: naming ``field`` and ``value``.

    """
    if not isinstance(value, str) or not (value.strip() or empty):
        raise InvalidValue(field, value, "text" if empty else "non-empty text")
