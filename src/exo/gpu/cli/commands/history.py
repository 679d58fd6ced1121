"""``exo-gpu history``: what a device did over the last minutes, hours or weeks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import drawing, plot_option, print_json
from exo.gpu.cli.main import FAILURE, SUCCESS, complain

if TYPE_CHECKING:
    from exo.gpu.telemetry.store.reader import HistoryReader
    from exo.gpu.telemetry.store.series import KeptEvent, KnownDevice, Series


def _moment(ctx: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Unix seconds of a time in the reader's own zone, or of so long ago; a click callback."""
    from datetime import datetime

    from exo.gpu.vocabulary.errors import InvalidValue
    from exo.gpu.vocabulary.units import parse_duration

    if text is None:
        return None
    try:
        return max(0.0, time.time() - parse_duration(text))
    except InvalidValue:
        pass
    try:
        return max(0.0, datetime.fromisoformat(text.strip()).astimezone().timestamp())
    except (ValueError, OverflowError, OSError):
        expected = 'a duration such as "6h", "30m" or "7d", or a time such as "2026-03-01 14:05"'
        message = f"{option.opts[-1]}: {text!r} is not {expected}"
        raise click.UsageError(message, ctx) from None


def _fields(ctx: click.Context, option: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """The readings that words stand for; a click callback."""
    from exo.gpu.cli.history_view import METRICS, metric_field
    from exo.gpu.vocabulary.errors import UnknownName

    fields: list[str] = []
    for word in words:
        field = metric_field(word)
        if field is None:
            raise click.UsageError(str(UnknownName(option.opts[-1], word, METRICS)), ctx)
        fields.append(field)
    return tuple(dict.fromkeys(fields))


def _complete_metric(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    from exo.gpu.cli.history_view import METRICS

    return [word for word in METRICS if word.startswith(incomplete)]


@click.command(
    epilog="Exit status: 0; 1 there is no history, of that device or in that span; 2 usage."
)
@click.argument("device", required=False)
@click.option(
    "--since",
    default="1h",
    callback=_moment,
    metavar="WHEN",
    help="From when on: so long ago (6h, 30m, 7d; 1h by default), or a time (2026-03-01 14:05).",
)
@click.option("--until", callback=_moment, metavar="WHEN", help="Until when; now by default.")
@click.option(
    "--metric",
    "fields",
    multiple=True,
    callback=_fields,
    shell_complete=_complete_metric,
    metavar="NAME",
    help="Only this reading: power, temperature, utilization, memory, clock, ..., or the full name "
    "of its field; may be repeated.",
)
@click.option(
    "--points",
    type=click.IntRange(1, 100_000),
    default=500,
    metavar="N",
    help="At most so many points of equal length (500).",
)
@plot_option("a picture")
@click.option("--csv", "as_csv", is_flag=True, help="A line for each point, in base units.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def command(device: str | None, since: float, until: float | None, **options: Any) -> int:
    """Show what a device did: its readings over time.

    DEVICE is a device id or a hardware id; without it, the devices that have a history are listed.
    Samples are kept for a day, and the minimum, mean and maximum of each minute for 90 days;
    'exo-gpu watch' records them.

    \b
    exo-gpu history cuda:0 --since 6h --metric power --metric temperature
    exo-gpu history cuda:0 --since 7d --plot week.png
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.telemetry.store.reader import HistoryReader
    from exo.gpu.telemetry.store.schema import history_path

    until = time.time() if until is None else until
    if until <= since:
        raise click.UsageError("--until must be later than --since")
    if options["as_csv"] and options["as_json"]:
        raise click.UsageError("--csv cannot go with --json")
    if device is None and (options["fields"] or options["plot"] or options["as_csv"]):
        raise click.UsageError("--metric, --plot and --csv need a DEVICE")
    path = history_path(os.environ)
    if not path.exists():
        complain(f"there is no history at {path} yet: 'exo-gpu watch' records it")
        return FAILURE
    with HistoryReader(path) as reader:
        if device is None:
            return _list(reader, as_json=options["as_json"])
        known = reader.find(device)
        fields = options["fields"] or _in_order(reader.metrics(device, since=since, until=until))
        all_series = [
            reader.series(device, field, since=since, until=until, points=options["points"])
            for field in fields
        ]
        events = reader.events(since=since, until=until, device=known.device_id)
    return _show(known, all_series, events, options)


def _show(
    known: KnownDevice,
    all_series: list[Series],
    events: tuple[KeptEvent, ...],
    options: dict[str, Any],
) -> int:
    """The answer in the form that was asked for; the exit status."""
    from exo.gpu.cli.history_view import bars_for, csv_text, event_lines, series_table

    found = any(series.count.any() for series in all_series)
    if options["plot"] and found:
        _draw(all_series, options["plot"])
    if options["as_json"]:
        described = [{**one.to_dict(), "device": known.device_id} for one in all_series]
        told = [event.to_dict() for event in events]
        print_json({"device": known.to_dict(), "series": described, "events": told})
    elif options["as_csv"]:
        click.echo(csv_text(all_series), nl=False)
    elif found:
        bars = bars_for(getattr(sys.stdout, "encoding", None))
        table = series_table(known, all_series, bars=bars)
        click.echo("\n".join((table, *event_lines(events))))
    if not found:
        complain(_nothing(known, options["fields"]))
    return SUCCESS if found else FAILURE


def _list(reader: HistoryReader, *, as_json: bool) -> int:
    from exo.gpu.cli.history_view import devices_table

    devices, statistics = reader.devices(), reader.statistics
    if as_json:
        print_json(
            {
                "path": str(reader.path),
                "devices": [device.to_dict() for device in devices],
                "statistics": statistics.to_dict(),
            }
        )
    elif devices:
        click.echo(devices_table(devices, statistics))
    if not devices:
        complain(f"the history at {reader.path} is empty: 'exo-gpu watch' fills it")
    return SUCCESS if devices else FAILURE


def _in_order(fields: tuple[str, ...]) -> list[str]:
    """Readings in the order of the table."""
    from exo.gpu.cli.history_view import METRICS

    return [metric.field for metric in METRICS.values() if metric.field in fields]


def _draw(all_series: list[Series], path: Path) -> None:
    with drawing(path):
        from exo.gpu.cli.history_view import draw

        draw(all_series, path)


def _nothing(device: KnownDevice, fields: tuple[str, ...]) -> str:
    from exo.gpu.cli.render import moment

    what = f"no {' or '.join(fields)} of" if fields else "nothing of"
    seen = "" if device.last_seen is None else f"; it was last seen {moment(device.last_seen)}"
    return f"there is {what} {device.device_id} in that span{seen}"
