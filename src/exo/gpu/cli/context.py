"""What the commands share: the options of a request, and the machine that they ask."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.request_options import (
    Command,
    count_option,
    duration,
    duration_from,
    gang_options,
    make_request,
    request_options,
    request_options_of_many,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from click.shell_completion import CompletionItem

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.snapshot import Snapshot

__all__ = [
    "count_option",
    "drawing",
    "duration",
    "duration_from",
    "files",
    "gang_options",
    "left_out_line",
    "make_request",
    "plot_option",
    "print_json",
    "request_options",
    "request_options_of_many",
    "size",
    "snapshot_of",
]


def files(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete names of files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def left_out_line(left_out: Iterable[Refusal]) -> str:
    """Which devices would do but are of another class or runtime, in one line; empty for none."""
    by_rule: dict[str, list[str]] = {}
    for one in left_out:
        by_rule.setdefault(one.rule, []).append(one.device_id)
    parts = (f"{', '.join(ids)} (of another {rule})" for rule, ids in by_rule.items())
    text = ", ".join(parts)
    return f"left out: {text}; --all-devices or --device takes them" if text else ""


def plot_option(what: str) -> Callable[[Command], Command]:
    """The option ``--plot`` of a command that can draw; see :func:`drawing`."""
    return click.option(
        "--plot",
        type=click.Path(dir_okay=False, path_type=Path),
        shell_complete=files,
        metavar="FILE",
        help=f"Also draw {what}: .png, .svg or .pdf.",
    )


@contextmanager
def drawing(path: Path) -> Generator[None]:
    """Around what draws a picture for ``--plot`` with matplotlib.

    Raises:
        BackendUnavailable: where that is not installed, with what installs it.
        UsageError: for a name whose ending is no kind of picture.

    """
    from exo.gpu.vocabulary.errors import BackendUnavailable

    try:
        yield
    except ImportError as error:
        hint = "pip install 'exo-gpu[plot]'"
        raise BackendUnavailable("--plot needs matplotlib, which is not here", hint) from error
    except ValueError as error:
        raise click.UsageError(f"--plot: {path} cannot be drawn: {error}") from error


def snapshot_of(node: Node) -> Snapshot:
    """All devices now, without leases where the store cannot be used; that is then said."""
    from exo.gpu.cli.main import complain
    from exo.gpu.vocabulary.errors import StoreError

    try:
        return node.snapshot()
    except StoreError as error:
        complain(f"leases and cordons are not shown: {error}")
        return node.snapshot(leases=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output, indented."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
