"""The live table as values: a row for each device, in order, and the columns that fit a width."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.cli.render import UNKNOWN
from exo.gpu.cli.top.columns import (
    ALWAYS,
    COLUMNS,
    COMFORTABLE_NAME,
    ID,
    NAME,
    NARROWEST_NAME,
    Column,
    Row,
)
from exo.gpu.cli.users import cells, fit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from exo.gpu.vocabulary.process import DeviceUser
    from exo.gpu.vocabulary.snapshot import DeviceState

GAP = 2
_WIDEST_ID = 24
_NARROWEST_ID = 8
# Identity, name and state stay in any window.
_FEWEST = 3


class Sorting(NamedTuple):
    """What rows are sorted by: a column's title, or None for the order in which they came."""

    title: str | None = None
    reverse: bool = False


def rows_of(
    states: Iterable[DeviceState], users: Iterable[DeviceUser], untold: Mapping[str, str]
) -> list[Row]:
    """The devices, each with its users."""
    by_device: dict[str, list[DeviceUser]] = {}
    for user in users:
        by_device.setdefault(user.device_id, []).append(user)
    return [
        Row(state, tuple(by_device.get(name, ())), name not in untold)
        for state in states
        for name in (state.device.device_id,)
    ]


def ordered(rows: Sequence[Row], sorting: Sorting) -> list[Row]:
    """The rows sorted; what is unknown comes last either way, and equals keep their order."""
    column = next((one for one in COLUMNS if one.title == sorting.title), None)
    if column is None:
        return list(reversed(rows)) if sorting.reverse else list(rows)
    keyed = [(column.key(row), row) for row in rows]
    known = [(key, row) for key, row in keyed if key is not None]
    known.sort(key=lambda pair: pair[0], reverse=column.falling != sorting.reverse)
    return [row for _, row in known] + [row for key, row in keyed if key is None]


def next_sorting(sorting: Sorting, titles: Sequence[str], *, step: int = 1) -> Sorting:
    """Sort by the next of the columns shown, and after the last by none."""
    choices = [None, *titles]
    place = choices.index(sorting.title) if sorting.title in choices else 0
    return Sorting(choices[(place + step) % len(choices)])


def columns_for(width: int, rows: Sequence[Row]) -> list[tuple[Column, int]]:
    """The columns that fit, each with its width; names get what is left over."""
    widths = {column.title: _width(column, rows) for column in COLUMNS[:ALWAYS]}
    wanted_name = widths[NAME.title]
    widths[NAME.title] = min(wanted_name, COMFORTABLE_NAME)
    for column in COLUMNS[ALWAYS:]:
        if all(column.text(row) == UNKNOWN for row in rows):
            continue
        widths[column.title] = _width(column, rows)
        if _total(widths) > width:
            del widths[column.title]
            break  # so that a wider window never shows less
    for column, least in ((NAME, NARROWEST_NAME), (ID, _NARROWEST_ID)):
        surplus = max(0, _total(widths) - width)
        wanted = widths[column.title]
        widths[column.title] = max(min(least, wanted), wanted - surplus)
    while _total(widths) > width and len(widths) > _FEWEST:
        widths.popitem()
    left = width - _total(widths)
    widths[NAME.title] = max(widths[NAME.title], min(wanted_name, widths[NAME.title] + left))
    return [(column, widths[column.title]) for column in COLUMNS if column.title in widths]


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1)


def header(columns: Sequence[tuple[Column, int]], sorting: Sorting) -> str:
    """The titles; the one that rows are sorted by has an arrow, down where it falls."""
    titles: list[str] = []
    for column, size in columns:
        title = column.title
        if title == sorting.title:
            title += "▼" if column.falling != sorting.reverse else "▲"
        titles.append(_aligned(title, size, right=column.right))
    return (" " * GAP).join(titles)


def line(row: Row, columns: Sequence[tuple[Column, int]]) -> list[str]:
    """The cells of a row, each as wide as its column."""
    return [
        _aligned(fit(column.text(row), size, end=column is ID), size, right=column.right)
        for column, size in columns
    ]


def _aligned(text: str, width: int, *, right: bool) -> str:
    gap = " " * (width - cells(text))
    return gap + text if right else text + gap


def _width(column: Column, rows: Iterable[Row]) -> int:
    # One more than the title, for the arrow.
    least = max(column.width, len(column.title) + 1)
    widest = max((cells(column.text(row)) for row in rows), default=0)
    return min(_WIDEST_ID, max(least, widest)) if column is ID else max(least, widest)
