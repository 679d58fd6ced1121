"""The options of commands that may wait for a device."""

from __future__ import annotations

from typing import Any

import click

from exo.gpu.cli.request_options import Command, duration

_OPTIONS = (
    click.option(
        "--wait",
        callback=duration,
        metavar="TIME",
        help="Stand in the line so long, as 30m or 90s, where nothing is free now.",
    ),
    click.option(
        "--no-wait",
        is_flag=True,
        help="Not even for memory that a lease which just ended is giving back (10 s at most).",
    ),
)


def wait_options(command: Command) -> Command:
    """Give a command the options that say how long it may wait."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def wait_seconds(options: dict[str, Any]) -> float | None:
    """How long may be waited; None: as little as is usual. Takes both options out of ``options``.

    Raises:
        UsageError: when both are given.

    """
    wait, no_wait = options.pop("wait"), options.pop("no_wait")
    if no_wait and wait:
        raise click.UsageError("--wait cannot go with --no-wait")
    return 0.0 if no_wait else wait
