"""The pane of the chosen device: its name, what is wrong with it, and how its readings went."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from rich.text import Text

from exo.gpu.cli.render import UNKNOWN, reading
from exo.gpu.cli.top.chart import chart
from exo.gpu.cli.top.colours import BOLD, CONDITIONS, DIM, GRAPH, PLAIN
from exo.gpu.cli.top.columns import condition, memory_percent, total_bytes, value_of
from exo.gpu.cli.top.remarks import remarks
from exo.gpu.cli.users import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.cli.top.columns import Row
    from exo.gpu.coordination.top_source import Series

_LABEL_WIDTH = 8
_FIGURE_WIDTH = 6
# Higher charts tell no more; lower ones have one line and none between them.
_HIGHEST_LINES = 5
_REMARK_LINES = 2

# What a scale without a limit of the device's own ends at.
_HOT_CELSIUS = 100.0


def history_text(
    row: Row | None, history: Series, cadence_seconds: float, *, width: int, lines: int
) -> Text:
    """The pane's lines, at most ``lines`` of at most ``width`` columns."""
    if row is None:
        return Text("")
    text = Text(no_wrap=True)
    span = _span(history, cadence_seconds, width - _LABEL_WIDTH - _FIGURE_WIDTH - 2)
    title = fit(f"{row.device_id}  {row.state.device.name}", max(1, width - len(span) - 2))
    text.append(title, BOLD)
    text.append(f"  {span}", DIM)
    said = textwrap.wrap("; ".join(remarks(row)), max(1, width))[:_REMARK_LINES]
    for line in said:
        text.append("\n" + fit(line, width), CONDITIONS.get(condition(row.state), PLAIN))
    charts = _charts(row, history)
    height = max(1, min(_HIGHEST_LINES, (lines - 1 - len(said)) // len(charts) - 1))
    for label, figure, values, high in charts:
        own = width - _LABEL_WIDTH - _FIGURE_WIDTH - 2
        drawn = chart(values, width=own, height=height, low=0.0, high=high)
        text.append("\n" if height > 1 else "")
        for place, line in enumerate(drawn):
            first = place == 0
            text.append("\n" + (label if first else "").ljust(_LABEL_WIDTH))
            words = figure if first else ""
            text.append(words.rjust(_FIGURE_WIDTH) + "  ", DIM if words == UNKNOWN else PLAIN)
            text.append(line, GRAPH)
    return text


def _charts(row: Row, history: Series) -> list[tuple[str, str, Sequence[float | None], float]]:
    """Label, newest figure, values and the top of the scale of each reading."""
    total = total_bytes(row) or 0
    used = history.get("memory_used_bytes", ())
    full = [None if value is None or not total else 100 * value / total for value in used]
    watts = history.get("power_watts", ())
    known = [value for value in watts if value is not None and math.isfinite(value)]
    limit = value_of(row, "power_limit_watts") or max(known, default=0.0) or 1.0
    return [
        (
            "util",
            reading(value_of(row, "compute_utilization_percent"), "%"),
            history.get("compute_utilization_percent", ()),
            100.0,
        ),
        ("memory", reading(memory_percent(row), "%"), full, 100.0),
        ("power", reading(value_of(row, "power_watts"), "W"), watts, limit),
        (
            "temp",
            reading(value_of(row, "temperature_celsius"), "C"),
            history.get("temperature_celsius", ()),
            _HOT_CELSIUS,
        ),
    ]


def _span(history: Series, cadence_seconds: float, width: int) -> str:
    """How far back the charts go: ``"last 4 min"``."""
    count = max((len(values) for values in history.values()), default=0)
    seconds = min(count, max(1, width)) * cadence_seconds
    if not count:
        return "no history yet"
    return f"last {seconds:.0f} s" if seconds < 120 else f"last {seconds / 60:.0f} min"
