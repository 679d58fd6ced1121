"""``exo-gpu top``: devices, their users and their health, live or as one table."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import duration_from, print_json, snapshot_of
from exo.gpu.cli.machines import cluster_option, open_node
from exo.gpu.cli.main import FAILURE, SUCCESS, complain

if TYPE_CHECKING:
    from collections.abc import Generator

    from exo.gpu.vocabulary.process import Occupancy
    from exo.gpu.vocabulary.snapshot import Snapshot

# Drivers average over as much: more often tells no more.
SHORTEST_CADENCE_SECONDS = 1.0

# What was logged while the table was drawn is told after it, the newest lines of it.
_LOG_LINES = 20


@click.command()
@click.option("--once", is_flag=True, help="Print a plain table once, also without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print it once as one JSON object.")
@click.option(
    "--every",
    "cadence_seconds",
    callback=duration_from(SHORTEST_CADENCE_SECONDS),
    metavar="TIME",
    help="How often devices are read, such as 5s; 1s by default.",
)
@cluster_option
def command(once: bool, as_json: bool, cluster: bool, cadence_seconds: float | None) -> int:
    """Watch every device, its users and its health live.

    Keys: s sorts by the next column, r reverses, arrows choose a device, p pauses, d shows all
    about it, ? explains, q quits. The live table needs Textual (pip install 'exo-gpu[tui]').
    """
    if once or as_json:
        _print_once(as_json=as_json, cluster=cluster)
        return SUCCESS
    try:
        from exo.gpu.cli.top.app import TopApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        complain(
            "the live table needs Textual: pip install 'exo-gpu[tui]' (exo-gpu top --once prints "
            "a table without it)"
        )
        return FAILURE
    # Textual reads standard input and draws on standard error.
    if not all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("the live table needs a terminal; --once prints a plain one")
    from exo.gpu.coordination.top_source import CADENCE_SECONDS, LocalTopSource

    kind = LocalTopSource
    if cluster:
        from exo.gpu.coordination.cluster_top import ClusterTopSource

        kind = ClusterTopSource
    with _held_logs(), kind(cadence_seconds=cadence_seconds or CADENCE_SECONDS) as source:
        TopApp(source).run()
    return SUCCESS


@contextmanager
def _held_logs() -> Generator[None]:
    """Keep the log off the screen meanwhile, and write its last lines afterwards."""
    # Changes of health are on the screen.
    logging.getLogger("exo.gpu.telemetry.health").setLevel(logging.ERROR)
    root = logging.getLogger()
    handlers, held = list(root.handlers), _HeldLog()
    root.handlers[:] = [held]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for record in held.records:
            root.handle(record)


class _HeldLog(logging.Handler):
    """Keeps the newest records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


def _print_once(*, as_json: bool, cluster: bool) -> None:
    from exo.gpu.coordination.processes import occupancy

    with open_node(cluster=cluster) as node:
        snapshot = snapshot_of(node)
        everybody = occupancy(node, snapshot)
        failures = node.sample_failures
    if as_json:
        print_json(_fields(snapshot, everybody, failures))
    else:
        click.echo(_text(snapshot, everybody, failures))


def _text(snapshot: Snapshot, everybody: Occupancy, failures: dict[str, str]) -> str:
    from exo.gpu.backends.support import shown
    from exo.gpu.cli.render import devices_table
    from exo.gpu.cli.top.totals import totals, totals_line
    from exo.gpu.cli.users import reason_lines, users_table

    states = snapshot.devices
    support = {state.device.backend: shown(state.device.backend) for state in states}
    lines = [totals_line(totals(states, everybody.users)), ""]
    if states:
        lines += [devices_table(states, failures=failures, support=support), ""]
    if everybody.users:
        lines += [*users_table(everybody.users, now=time.time()), ""]
    lines += reason_lines(everybody.users, everybody.untold)
    return "\n".join(lines).rstrip()


def _fields(snapshot: Snapshot, everybody: Occupancy, failures: dict[str, str]) -> dict[str, Any]:
    from exo.gpu.cli.top.totals import totals

    return {
        "taken_at": time.time(),
        "totals": totals(snapshot.devices, everybody.users),
        "devices": [
            {
                "device": state.device.to_dict(),
                "health": state.health.value,
                "health_reason": state.health_reason,
                "sample": None if state.sample is None else state.sample.to_dict(),
                "sample_age_seconds": state.sample_age_seconds,
                "sample_failure": failures.get(state.device.device_id),
                "cordon": None if state.cordon is None else state.cordon.to_dict(),
                "leases": [lease.to_dict() for lease in state.leases],
            }
            for state in snapshot.devices
        ],
        **everybody.to_dict(),
    }
