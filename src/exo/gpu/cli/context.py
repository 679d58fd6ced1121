"""What the commands share: the options of a request, and the machine that they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from click.shell_completion import CompletionItem

    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot

Command = TypeVar("Command", bound="Callable[..., Any]")


def size(ctx: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes of ``8GiB``, ``8GB``, ``500MiB`` or a plain number; a click callback.

    Raises:
        UsageError: naming the option and the text.

    """
    from exo.gpu.vocabulary.errors import InvalidValue
    from exo.gpu.vocabulary.units import parse_size

    try:
        parsed = None if text is None else parse_size(text, option.opts[-1])
        if parsed == 0:
            raise InvalidValue(option.opts[-1], text, "a size above 0; leave it out to take a slot")
    except InvalidValue as error:
        raise click.UsageError(str(error), ctx) from None
    return parsed


def duration(ctx: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Seconds of ``30m``, ``90s``, ``1.5h`` or a plain number; a click callback.

    Raises:
        UsageError: naming the option and the text.

    """
    from exo.gpu.vocabulary.errors import InvalidValue
    from exo.gpu.vocabulary.units import parse_duration

    try:
        return None if text is None else parse_duration(text, option.opts[-1])
    except InvalidValue as error:
        raise click.UsageError(str(error), ctx) from None


def runtime(ctx: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """One of the runtimes that exist; a click callback.

    Raises:
        UsageError: naming the option, the text and the near spelling.

    """
    from exo.gpu.vocabulary.device import RUNTIMES
    from exo.gpu.vocabulary.errors import UnknownName

    if name is None or name in RUNTIMES:
        return name
    raise click.UsageError(str(UnknownName(option.opts[-1], name, RUNTIMES)), ctx)


def files(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete names of files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _runtimes(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    from exo.gpu.vocabulary.device import RUNTIMES

    return [name for name in RUNTIMES if name.startswith(incomplete)]


count_option = click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="How many devices; all or nothing.",
)

_ON_OPTION = click.option(
    "--on",
    "runtime",
    callback=runtime,
    shell_complete=_runtimes,
    metavar="RUNTIME",
    help="Only devices of this runtime: what the program was built for.",
)

_REQUEST_OPTIONS = (
    click.option(
        "--memory",
        callback=size,
        metavar="SIZE",
        help="Device memory needed in total, such as 8GiB, 8GB or 500MiB; without it, one of the "
        "device's slots is taken instead.",
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="ID",
        help="Only this device (id, alias or hardware id), of whatever kind; may be repeated.",
    ),
    _ON_OPTION,
    click.option(
        "--all-devices",
        is_flag=True,
        help="Every runtime at once, software drivers and the host beside hardware.",
    ),
    click.option("--exclusive", is_flag=True, help="Nobody else's lease on the same device."),
)


def request_options(command: Command) -> Command:
    """Give a command the options that say what its work needs."""
    for option in reversed(_REQUEST_OPTIONS):
        command = option(command)
    return command


def request_options_of_many(command: Command) -> Command:
    """The same options, where ``--on`` may name several runtimes."""
    several = click.option(
        "--on",
        "runtimes",
        multiple=True,
        callback=_runtime_names,
        shell_complete=_runtimes,
        metavar="RUNTIME",
        help="Only devices of this runtime; several, each before a template of its own, make "
        "unlike devices work together.",
    )
    for option in reversed(_REQUEST_OPTIONS):
        command = (several if option is _ON_OPTION else option)(command)
    return command


def _runtime_names(
    ctx: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        runtime(ctx, option, name)
    return names


def make_request(holder: str, options: dict[str, Any]) -> Request:
    """The request that the options of :func:`request_options` describe.

    ``holder`` says who asks, for people.

    Raises:
        UsageError: for options that exclude each other.

    """
    from exo.gpu.vocabulary.request import Request

    if options["all_devices"] and (options["runtime"] or options["devices"]):
        raise click.UsageError("--all-devices cannot go with --on or --device")
    return Request(
        memory_bytes=options["memory"],
        count=options.get("count", 1),
        exclusive=options["exclusive"],
        devices=tuple(options["devices"]),
        runtime=options["runtime"],
        all_devices=options["all_devices"],
        holder=holder,
    )


def left_out_line(left_out: Iterable[Refusal]) -> str:
    """Which devices would do but are of another class or runtime, in one line; empty for none."""
    by_rule: dict[str, list[str]] = {}
    for one in left_out:
        by_rule.setdefault(one.rule, []).append(one.device_id)
    parts = (f"{', '.join(ids)} (of another {rule})" for rule, ids in by_rule.items())
    text = ", ".join(parts)
    return f"left out: {text}; --all-devices or --device takes them" if text else ""


def snapshot_of(node: LocalNode) -> Snapshot:
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
