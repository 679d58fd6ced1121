"""Who is on which device, as a table for people; what others named is made harmless to show."""

from __future__ import annotations

import textwrap
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from exo.gpu.cli.render import UNKNOWN, WIDTH
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exo.gpu.vocabulary.process import DeviceUser

_TITLES = ("DEVICE", "PID", "USER", "SINCE", "USED", "LEASE")
_RIGHT_ALIGNED = {"PID", "USED"}
_COMMAND = "COMMAND"
_NARROWEST_COMMAND, _NARROWEST_FIRST = 10, 6
_WIDEST = {"DEVICE": 20, "USER": 10}

# As many as are named where one reason stands for many rows.
_NAMED = 4


def users_table(
    users: Sequence[DeviceUser], *, now: float, width: int = WIDTH, devices: bool = True
) -> list[str]:
    """A line of titles and one for each user; the command is cut to ``width``.

    ``now``, in Unix seconds, decides how a start is written; without ``devices`` the column of
    device ids is left out. Unknown is ``-``.
    """
    first = 0 if devices else 1
    titles = _TITLES[first:]
    rows = [titles, *(_cells(user, now)[first:] for user in users)]
    rows = [tuple(map(_limited, titles, row)) for row in rows]
    widths = [max(cells(row[index]) for row in rows) for index in range(len(titles))]
    rest = width - sum(widths) - 2 * len(widths)
    if rest < _NARROWEST_COMMAND:
        rows, widths[0] = _narrowed(rows, widths[0] + rest - _NARROWEST_COMMAND)
        rest = _NARROWEST_COMMAND
    commands = (_COMMAND, *(fit(doing(user), rest) for user in users))
    return [
        "  ".join((*map(_padded, titles, row, widths), command)).rstrip()
        for row, command in zip(rows, commands, strict=True)
    ]


def reason_lines(
    users: Iterable[DeviceUser], untold: Mapping[str, str], *, width: int = WIDTH
) -> list[str]:
    """Each reason for a ``-`` once, behind those whom it concerns, wrapped to ``width``."""
    concerned: dict[str, list[str]] = {}
    for device_id, reason in untold.items():
        concerned.setdefault(reason, []).append(device_id)
    for user in users:
        if user.reason and (user.listed or user.device_id not in untold):
            name = f"{user.device_id} {UNKNOWN if user.pid is None else user.pid}"
            concerned.setdefault(user.reason, []).append(name)
    lines: list[str] = []
    for reason, names in concerned.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = printable(f"{', '.join(names[:_NAMED])}{more}: {reason}")
        lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
    return lines


def doing(user: DeviceUser) -> str:
    """What a user runs; of a lease without a process, what it was taken for."""
    return (None if user.listed else user.holder) or user.command or user.holder or UNKNOWN


def held(user: DeviceUser) -> str:
    """What a user holds by lease: ``8.0 GiB``, ``slot``, ``50%``, ``whole``, or ``foreign``."""
    if user.foreign:
        return "foreign"
    if user.exclusive:
        return "whole"
    if user.declared_bytes is not None:
        return format_size(user.declared_bytes)
    return "slot" if user.share is None else f"{100 * user.share:.0f}%"


def started(unix_seconds: float | None, now: float) -> str:
    """A start in the reader's own zone: the time of today, else the date; ``-`` for unknown."""
    if unix_seconds is None:
        return UNKNOWN
    local, today = (datetime.fromtimestamp(one, tz=UTC).astimezone() for one in (unix_seconds, now))
    return local.strftime("%H:%M" if local.date() == today.date() else "%Y-%m-%d")


def printable(text: str) -> str:
    """The text in one line, without what a terminal would obey instead of showing it."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "?"
        for character in text
    )


def cells(text: str) -> int:
    """How many columns a printable text takes in a terminal (Unicode's annex 11)."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def fit(text: str, width: int, *, end: bool = False) -> str:
    """The text made printable and cut to ``width`` columns; with ``end`` its end is kept."""
    text = printable(text)
    if cells(text) <= width:
        return text
    kept = ""
    for character in reversed(text) if end else text:
        if cells(kept) + _cells_of(character) > width - 1:
            break
        kept += character
    return "…" + kept[::-1] if end else kept + "…"


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cells(user: DeviceUser, now: float) -> tuple[str, ...]:
    return (
        user.device_id,
        UNKNOWN if user.pid is None else str(user.pid),
        user.user or UNKNOWN,
        started(user.since, now),
        format_size(user.memory_bytes),
        held(user),
    )


def _narrowed(rows: list[tuple[str, ...]], width: int) -> tuple[list[tuple[str, ...]], int]:
    """The rows with a first column that is no wider than that; less than a word is of no use."""
    width = max(width, _NARROWEST_FIRST)
    return [(fit(row[0], width, end=True), *row[1:]) for row in rows], width


def _limited(title: str, cell: str) -> str:
    return fit(cell, _WIDEST.get(title, WIDTH), end=title == "DEVICE")


def _padded(title: str, cell: str, width: int) -> str:
    gap = " " * (width - cells(cell))
    return gap + cell if title in _RIGHT_ALIGNED else cell + gap
