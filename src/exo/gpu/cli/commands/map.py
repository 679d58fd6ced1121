"""``exo-gpu map``: a shell command for every item, spread over the devices."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import duration, files, make_request, request_options_of_many
from exo.gpu.cli.machines import cluster_option
from exo.gpu.cli.map.halt import halt_option
from exo.gpu.cli.waiting import wait_options, wait_seconds

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from exo.gpu.cli.map.halt import Halt
    from exo.gpu.cli.map.sources import Items
    from exo.gpu.cli.map.templates import Templates
    from exo.gpu.vocabulary.request import Request

# As GNU parallel: the status is the number of failed items, up to here; one more means "more".
MOST_COUNTED = 100

SIGNAL_BASE = 128  # a shell's status for a death by signal n is 128 + n

_OPTIONS = (
    click.option(
        "-j",
        "--slots",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many items a device has at once.",
    ),
    click.option(
        "-0", "--null", is_flag=True, help="Items that are read end in NUL, not in a line end."
    ),
    click.option("-k", "--keep-order", is_flag=True, help="Print in the order of the items."),
    click.option("--tag", is_flag=True, help="Print the item and a tab before each line."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each item."),
    click.option(
        "--halt",
        callback=halt_option,
        metavar="WHEN",
        help="Stop early: now,fail=1 ends what runs; soon,fail=20% begins no more. Also success=N "
        "and done=N.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Try a failed item up to N times more.",
    ),
    click.option(
        "--no-grow",
        is_flag=True,
        help="Do not try an item that ran out of memory again with more of it.",
    ),
    click.option(
        "--timeout",
        callback=duration,
        metavar="TIME",
        help="End an item that takes longer, as 90s or 30m: it has failed.",
    ),
    click.option(
        "--joblog",
        type=click.Path(dir_okay=False, path_type=Path),
        shell_complete=files,
        metavar="FILE",
        help="Write a line for each item, in GNU parallel's columns; FILE.journal lies beside it.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Run only the items whose success is not recorded: by the journal beside --joblog, "
        "or of the newest job of this command in this directory, or of this --name.",
    ),
    click.option("--resume-failed", is_flag=True, help="The same, as GNU parallel has it."),
    click.option("--name", default="", metavar="TEXT", help="What the job is called."),
    click.option("--sync", is_flag=True, help="Have each record on the disk before going on."),
    click.option("--eta", is_flag=True, help="A bar for each device, and how long it will take."),
    cluster_option,
    click.option("--dry-run", is_flag=True, help="Print the commands and run none."),
)


def _map_options(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status, as GNU parallel's: the number of failed items up to 100; 101 for more; "
    "255 usage or our own failure. Two answers to the request come before any item starts: "
    "69 no device here can ever satisfy this; 75 not now.",
)
@request_options_of_many
@wait_options
@_map_options
@click.argument(
    "words",
    metavar="TEMPLATE [::: ITEM...] [:::: FILE...]",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=files,
)
def command(words: tuple[str, ...], **options: Any) -> int:
    """Run a command for every item, spread over the devices.

    TEMPLATE is a command of /bin/sh. The item, quoted for the shell, replaces every {}, or
    follows it where there is none; put no quotes of your own around {}. Items come after ':::',
    from the lines of a file after '::::', or from standard input, one a line, an empty line being
    an item; several lists are combined, and ':::+' goes along with the list before it. A device
    takes the next item as soon as it is free. What an item prints comes out whole, as the items
    end.

    {.} is the item without its extension, {/} without its folders, {//} its folder, {/.} both;
    {1} and {2.} are of one list; {#} is its number, {%} that of the slot, {device} the device.

    \b
    exo-gpu map 'gzip -9 -k {}' ::: *.jsonl
    find . -name '*.wav' | exo-gpu map --joblog log 'python transcribe.py {}'
    exo-gpu map --on cuda 'A {}' --on rocm 'B {}' ::: 1 2 3
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.cli.map.sources import Items, split_words
    from exo.gpu.cli.map.templates import parse_templates

    if options["timeout"] == 0:
        raise click.UsageError(
            "--timeout: 0 s is no time at all; leave it out for as long as it takes"
        )
    resume = options.pop("resume") or options.pop("resume_failed")
    told = split_words(words, null=options.pop("null"))
    templates = parse_templates(options["runtimes"], told.template)
    items = Items(told.sources)
    if options["dry_run"]:
        return _dry_run(templates, items, options, resume=resume)
    requests = _requests(templates, options)
    with _ending_on_signals():
        failed = _run(templates, items, requests, options, resume=resume)
    return min(failed, MOST_COUNTED + 1)


def _run(
    templates: Templates,
    items: Items,
    requests: tuple[Request, ...],
    options: dict[str, Any],
    *,
    resume: bool,
) -> int:
    """Run the items; how many failed, or 0 where enough of them succeeded."""
    from exo.gpu.cli.map.job import MapJob, Settings
    from exo.gpu.configuration import load_configuration

    configuration = load_configuration(os.environ)
    halt: Halt | None = options["halt"]
    settings = Settings(
        slots=options["slots"] or configuration.value("map.slots"),
        keep_order=options["keep_order"] or configuration.value("map.keep_order"),
        as_json=options["as_json"],
        tag=options["tag"],
        halt=halt,
        joblog=options["joblog"],
        resume=resume,
        retries=options["retries"],
        grow=not options["no_grow"],
        timeout_seconds=options["timeout"],
        eta=options["eta"],
        name=options["name"],
        sync=options["sync"],
        wait_seconds=wait_seconds(options),
        cluster=options["cluster"],
    )
    return MapJob(templates, items, settings).run(requests)


def _requests(templates: Templates, options: dict[str, Any]) -> tuple[Request, ...]:
    """What is asked of the devices: once, or for each runtime.

    Raises:
        UsageError: for options that exclude each other.

    """
    holder = options["name"] or f"exo-gpu map {templates.title}"
    kind = options["kind"] or templates.title
    runtimes = templates.runtimes or (None,)
    requests = tuple(
        make_request(holder, options | {"runtime": one, "kind": kind}) for one in runtimes
    )
    if requests[0].count > 1:
        raise click.UsageError("--request: an item has one device, and a count is asked for")
    return requests


def _dry_run(templates: Templates, items: Items, options: dict[str, Any], *, resume: bool) -> int:
    """Print what would run; what depends on the device stays as it was written."""
    from exo.gpu.cli.map.keeping import tally_to_resume
    from exo.gpu.cli.map.templates import digest_of

    tally = tally_to_resume(templates.texts, options["joblog"], options["name"]) if resume else None
    for index, arguments in enumerate(items):
        if tally is None or not tally.has_succeeded(index, digest_of(arguments)):
            for line in templates.listed(arguments, index + 1):
                click.echo(os.fsencode(line))
    return 0


@contextmanager
def _ending_on_signals() -> Generator[None]:
    """Let SIGTERM and SIGHUP unwind the program, so that they end what runs, as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(SIGNAL_BASE + number)

    # What the caller ignores (nohup) stays ignored.
    previous = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
