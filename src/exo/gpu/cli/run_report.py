"""What a command took, in one line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from exo.gpu.vocabulary.command_end import CommandEnd

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def report_line(end: CommandEnd) -> str:
    """``"cuda:0 for 12 m 3 s, peak 7.9 GiB of 8.0 GiB declared, host memory 1.2 GiB"``."""
    parts = [f"{', '.join(end.device_ids)} for {span_words(end.seconds)}"]
    if end.timed_out:
        parts.append("ended by its time limit")
    parts.append(_device_memory(end))
    if end.peak_host_bytes is not None:
        parts.append(f"host memory {format_size(end.peak_host_bytes)}")
    if end.attempts > 1:
        parts.append(f"at try {end.attempts}")
    return ", ".join(parts)


def _device_memory(end: CommandEnd) -> str:
    declared = "" if end.declared_bytes is None else f" of {format_size(end.declared_bytes)}"
    declared = f"{declared} declared" if declared else ""
    peaks = [
        format_size(end.peak_device_bytes[device_id])
        for device_id in end.device_ids
        if device_id in end.peak_device_bytes
    ]
    if not peaks:
        return f"peak not seen{declared}"
    return f"peak {' and '.join(peaks)}{declared}"


def span_words(seconds: float) -> str:
    """``"12 m 3 s"``, ``"2 h 5 m"``, and below a minute ``"3.2 s"``: two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    words: list[str] = []
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or words:
            words.append(f"{count} {unit}")
    return " ".join(word for word in words[:2] if not word.startswith("0 "))
