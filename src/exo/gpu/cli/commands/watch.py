"""``exo-gpu watch``: samples as they come, for programs, for Prometheus, and for the history."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import duration
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from exo.gpu.coordination.monitor import Monitor, Subscription
    from exo.gpu.nodes.watching import NodeEvent

# How soon a wish to end is noticed where nothing happens.
_WAIT_SECONDS = 0.25


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@click.option(
    "--every",
    "cadence",
    callback=duration,
    default="1s",
    metavar="TIME",
    help="How often each device is sampled, such as 1s or 500ms.",
)
@click.option(
    "--for", "length", callback=duration, metavar="TIME", help="End by itself after this time."
)
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also keep this file up to date with Prometheus text; node_exporter's textfile "
    "collector, for one, reads such a file.",
)
@click.option("--no-history", is_flag=True, help="Keep nothing on disk.")
def command(
    as_json: bool, cadence: float, length: float | None, textfile: Path | None, no_history: bool
) -> None:
    """Sample every device over and over.

    It tells what is read and what changes, and ends on Ctrl-C or when nobody reads its output any
    more. Unless another process does so already, it keeps the history that 'exo-gpu history'
    shows.
    """
    from exo.gpu.coordination.monitor import Monitor

    # What it tells is told on standard output already.
    logging.getLogger("exo.gpu.telemetry.health").setLevel(logging.ERROR)
    monitor = Monitor(cadence_seconds=cadence, history=not no_history)
    subscription = monitor.subscribe()
    with _until_signals() as is_over, monitor:
        if not no_history:
            _tell_recording(monitor)
        teller = _tell_json if as_json else _tell_people
        teller_ends = None if length is None else time.monotonic() + length
        due = time.monotonic()
        for device in monitor.devices if as_json else ():
            _write(_json_lines().device_line(device))
        while not is_over() and (teller_ends is None or time.monotonic() < teller_ends):
            _drain(subscription, teller)
            if textfile is not None and time.monotonic() >= due:
                _keep(textfile, monitor)
                due = max(due + cadence, time.monotonic())
    if subscription.lost:
        complain(f"{subscription.lost} events were not shown: they came faster than they were read")


def _drain(subscription: Subscription, teller: Callable[[NodeEvent], None]) -> None:
    """Tell what has come, having waited a moment for it."""
    event = subscription.get(_WAIT_SECONDS)
    while event is not None:
        teller(event)
        event = subscription.get(0)
    sys.stdout.flush()


@contextmanager
def _until_signals() -> Generator[Callable[[], bool]]:
    """Whether SIGINT, SIGTERM or SIGHUP came; each ends the watch in good order."""
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _tell_recording(monitor: Monitor) -> None:
    recording = monitor.recording
    if recording.active:
        complain(f"keeping the history in {recording.path}")
    else:
        complain(f"no history is kept: {recording.reason}")


def _keep(path: Path, monitor: Monitor) -> None:
    """Replace the file by what is known now; readers see the old one or the new one, whole."""
    from exo.gpu import __version__
    from exo.gpu.telemetry.exporters.prometheus import prometheus_text

    text = prometheus_text(monitor.snapshot(), missing=monitor.missing, version=__version__)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _json_lines() -> Any:
    from exo.gpu.telemetry.exporters import json_lines

    return json_lines


def _tell_json(event: NodeEvent) -> None:
    from exo.gpu.telemetry.sampling.observation import Observation
    from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
    from exo.gpu.vocabulary.inventory import DeviceChange

    lines = _json_lines()
    match event:
        case Observation(sample=None):
            _write(lines.failure_line(event.device_id, event.failure, at=time.time()))
        case Observation():
            _write(lines.sample_line(event.sample))
        case HealthEvent():
            _write(lines.health_line(event))
        case DeviceFault():
            _write(lines.fault_line(event))
        case DeviceChange():
            _write(lines.change_line(event, at=time.time()))


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line)


def _tell_people(event: NodeEvent) -> None:
    from exo.gpu.cli.render import said_line, sample_line
    from exo.gpu.telemetry.sampling.observation import Observation
    from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
    from exo.gpu.vocabulary.inventory import DeviceChange

    now = time.time()
    match event:
        case Observation(sample=None):
            text = said_line(now, event.device_id, f"no sample: {event.failure}")
        case Observation():
            assert event.sample is not None
            text = sample_line(event.sample)
        case HealthEvent():
            why = f": {'; '.join(event.reasons)}" if event.reasons else ""
            text = said_line(event.at, event.device_id, f"is {event.after}{why}")
        case DeviceFault():
            text = said_line(event.at, event.device_id, f"fault {event.code}: {event.what}")
        case DeviceChange():
            text = said_line(now, event.device.device_id, f"{event.kind}: {event.device.name}")
    click.echo(text)
