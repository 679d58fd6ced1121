"""A history to text, CSV and pictures: the words that people use for readings, and sparklines."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.cli.render import UNKNOWN, WIDTH, moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exo.gpu.telemetry.store.series import HistoryStatistics, KeptEvent, KnownDevice, Series


class Metric(NamedTuple):
    """A reading as people call it: its field, their unit, and how many base units that has."""

    field: str
    unit: str
    base_units: float = 1.0


METRICS = {
    "utilization": Metric("compute_utilization_percent", "%"),
    "memory": Metric("memory_used_bytes", "GiB", 2**30),
    "power": Metric("power_watts", "W"),
    "temperature": Metric("temperature_celsius", "C"),
    "clock": Metric("clock_rate_mhz", "MHz"),
    "fan": Metric("fan_percent", "%"),
    "memory-utilization": Metric("memory_utilization_percent", "%"),
    "memory-clock": Metric("memory_clock_mhz", "MHz"),
    "memory-temperature": Metric("memory_temperature_celsius", "C"),
    "hotspot": Metric("hotspot_temperature_celsius", "C"),
    "memory-total": Metric("memory_total_bytes", "GiB", 2**30),
    "memory-reserved": Metric("memory_reserved_bytes", "GiB", 2**30),
    "power-limit": Metric("power_limit_watts", "W"),
    "power-window": Metric("power_window_seconds", "s"),
    "energy": Metric("energy_joules", "kJ", 1000.0),
    "corrected-errors": Metric("corrected_errors", ""),
    "uncorrected-errors": Metric("uncorrected_errors", ""),
    "pcie-generation": Metric("pcie_generation", ""),
    "pcie-width": Metric("pcie_width", "lanes"),
    "encoder": Metric("encoder_percent", "%"),
    "decoder": Metric("decoder_percent", "%"),
    "performance-state": Metric("performance_state", ""),
}
"""Word -> reading, in the order of the table."""

_WORDS = {metric.field: word for word, metric in METRICS.items()}
_SHORT = {"util": "utilization", "mem": "memory", "temp": "temperature"}
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=+*%#"
_FIGURE_WIDTH = 10
_LAST_EVENTS = 10


def metric_field(word: str) -> str | None:
    """The reading that a word or the name of its field means, or None."""
    spelled = word.lower().replace("_", "-")
    known = METRICS.get(_SHORT.get(spelled, spelled))
    if known is not None:
        return known.field
    return word if word in _WORDS else None


def sparkline(values: Sequence[float | None], width: int, *, bars: str = _BARS) -> str:
    """The course of values in ``width`` characters or less, from their lowest to their highest.

    A gap stays blank; of several values that fall on one character, the mean is shown.
    """
    if not values:
        return ""
    width = min(width, len(values))
    cells: list[float | None] = []
    for cell in range(width):
        part = values[cell * len(values) // width : (cell + 1) * len(values) // width]
        known = [value for value in part if value is not None]
        cells.append(sum(known) / len(known) if known else None)
    heights = [value for value in cells if value is not None]
    if not heights:
        return " " * width
    low, span = min(heights), max(heights) - min(heights)
    top = len(bars) - 1
    return "".join(
        " " if value is None else bars[round((value - low) / span * top) if span else 0]
        for value in cells
    )


def bars_for(encoding: str | None) -> str:
    """The characters of a sparkline that an output of this encoding can show."""
    try:
        _BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return _PLAIN_BARS
    return _BARS


def series_table(
    device: KnownDevice, all_series: Sequence[Series], *, bars: str = _BARS, width: int = WIDTH
) -> str:
    """A line for each reading: lowest, mean and highest of the whole span, and its course."""
    first = all_series[0]
    end = first.since + first.step_seconds * len(first.count)
    name = f" {device.name}" if device.name else ""
    lines = [
        f"{device.device_id}{name} ({device.hardware_id})",
        f"{moment(first.since)} .. {moment(end)}",
        "",
    ]
    words = [_word(series.metric) for series in all_series]
    margin = max(len("METRIC"), *map(len, words))
    heads = "".join(f"{head:>{_FIGURE_WIDTH}}" for head in ("MIN", "MEAN", "MAX"))
    lines.append(f"{'METRIC':<{margin}}{heads}")
    for word, series in zip(words, all_series, strict=True):
        metric = METRICS[word]
        figures = "".join(f"{_figure(value, metric):>{_FIGURE_WIDTH}}" for value in totals(series))
        lead = f"{word:<{margin}}{figures} {metric.unit:<5} "
        means: list[float] = series.mean.tolist()
        known = [value if value == value else None for value in means]  # noqa: PLR0124 - NaN
        lines.append(f"{lead}{sparkline(known, width - len(lead), bars=bars)}".rstrip())
    return "\n".join(lines)


def totals(series: Series) -> tuple[float | None, float | None, float | None]:
    """Lowest, mean and highest of a whole series; None for one that has nothing."""
    known = series.count > 0
    if not known.any():
        return None, None, None
    counts = series.count[known]
    return (
        float(series.minimum[known].min()),
        float((series.mean[known] * counts).sum() / counts.sum()),
        float(series.maximum[known].max()),
    )


def event_lines(events: Sequence[KeptEvent]) -> list[str]:
    """The last events, one a line."""
    lines: list[str] = []
    for event in events[-_LAST_EVENTS:]:
        fields = event.fields
        if event.kind == "health":
            what = f"{fields['before']} -> {fields['after']}"
            reasons = "; ".join(fields.get("reasons", ()))
            what += f": {reasons}" if reasons else ""
        else:
            what = f"fault {fields.get('code')}: {fields.get('what')}"
        lines.append(f"{moment(event.at)}  {what}")
    return lines


def devices_table(devices: Sequence[KnownDevice], statistics: HistoryStatistics) -> str:
    """The devices that have a history, a line each, and how much there is."""
    from exo.gpu.vocabulary.units import format_size

    rows = [("ID", "FIRST SEEN", "LAST SEEN", "NAME")]
    for device in devices:
        first, last = (
            UNKNOWN if at is None else moment(at) for at in (device.first_seen, device.last_seen)
        )
        rows.append((device.device_id, first, last, device.name or device.hardware_id))
    widths = [max(len(row[index]) for row in rows) for index in range(3)]
    lines = [
        "  ".join((*(cell.ljust(size) for cell, size in zip(row, widths, strict=False)), row[3]))
        for row in rows
    ]
    since = UNKNOWN if statistics.raw_since is None else moment(statistics.raw_since)
    lines.append(f"{format_size(statistics.used_bytes)}, samples since {since}.")
    return "\n".join(line[:WIDTH] for line in lines)


def csv_text(all_series: Sequence[Series]) -> str:
    """A line for each point of each series, in base units; times in UTC, unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("time", "device_id", "metric", "minimum", "mean", "maximum", "count"))
    for series in all_series:
        fields = series.to_dict()
        columns = (fields["times"], fields["minimum"], fields["mean"], fields["maximum"])
        for at, *figures, count in zip(*columns, fields["count"], strict=True):
            when = datetime.fromtimestamp(at, tz=UTC).isoformat(timespec="milliseconds")
            place = (when.replace("+00:00", "Z"), series.device.device_id, series.metric)
            writer.writerow((*place, *figures, count))
    return text.getvalue()


def draw(all_series: Sequence[Series], path: Path) -> None:
    """Write a picture with a panel for each series: the mean, and the range behind it.

    Raises:
        ImportError: where matplotlib is not installed.
        ValueError: for a name whose ending is no kind of picture.

    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(10, 0.8 + 2.2 * len(all_series)), layout="constrained")
    panels = figure.subplots(len(all_series), 1, sharex=True, squeeze=False)
    for panel, series in zip(panels[:, 0], all_series, strict=True):
        word = _word(series.metric)
        metric = METRICS[word]
        times = [datetime.fromtimestamp(at, tz=UTC).astimezone() for at in series.times.tolist()]
        low, mean, high = (
            column / metric.base_units for column in (series.minimum, series.mean, series.maximum)
        )
        panel.fill_between(times, low, high, alpha=0.3, linewidth=0)
        panel.plot(times, mean, linewidth=1.2)
        panel.set_ylabel(f"{word} ({metric.unit})" if metric.unit else word)
        panel.grid(visible=True, alpha=0.3)
    device = all_series[0].device
    figure.suptitle(f"{device.device_id} {device.name}".strip())
    figure.autofmt_xdate()
    figure.savefig(path)


def _word(field: str) -> str:
    return _WORDS[field]


def _figure(value: float | None, metric: Metric) -> str:
    return UNKNOWN if value is None else f"{value / metric.base_units:.1f}"
