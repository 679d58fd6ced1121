"""The pane of those who are on the chosen device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from exo.gpu.cli.top.colours import BOLD, DIM
from exo.gpu.cli.users import reason_lines, users_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.cli.top.columns import Row


def users_text(
    row: Row | None, untold: Mapping[str, str], *, now: float, width: int, lines: int
) -> Text:
    """The pane's lines: titles, users, and below them why something is not known."""
    text = Text(no_wrap=True)
    if row is None:
        return text
    own = {name: why for name, why in untold.items() if name == row.device_id}
    reasons = reason_lines(row.users, own, width=width)
    if not row.users:
        text.append("nobody is on it" if row.told else "nobody is known to be on it", DIM)
    else:
        table = users_table(row.users, now=now, width=width, devices=False)
        # Users before reasons; the detail has them all.
        room = max(2, lines - min(len(reasons), max(1, lines // 3)))
        shown = table if len(table) <= room else table[: room - 1]
        text.append(shown[0], BOLD)
        for line in shown[1:]:
            text.append("\n" + line)
        if len(shown) < len(table):
            text.append(f"\nand {len(table) - len(shown)} more: d shows all", DIM)
    for line in reasons[: max(1, lines - text.plain.count("\n") - 1)]:
        text.append("\n" + line, DIM)
    return text
