"""``exo-gpu map``: a shell command for every item, spread over the devices."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from exo.gpu.cli.context import files, left_out_line, make_request, request_options
from exo.gpu.cli.main import complain
from exo.gpu.cli.waiting import wait_options, wait_seconds

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from types import FrameType

    from exo.gpu.cli.progress import Progress
    from exo.gpu.coordination.commands import CommandDone

ITEMS_FOLLOW = ":::"
PLACE = "{}"

# As GNU parallel: the status is the number of failed items, up to here; one more means "more".
MOST_COUNTED = 100

SIGNAL_BASE = 128  # a shell's status for a death by signal n is 128 + n

# Outputs that wait for their turn under --keep-order stay in memory up to here, then on disk.
SPOOL_BYTES = 16 * 2**20

READ_BYTES = 65536  # what a pipe holds on Linux


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status, as GNU parallel's: the number of failed items up to 100; 101 for more; "
    "255 usage or our own failure. Two answers to the request come before any item starts: "
    "69 no device here can ever satisfy this; 75 not now.",
)
@request_options
@wait_options
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="How many items a device has at once."
)
@click.option("-k", "--keep-order", is_flag=True, help="Print in the order of the items.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each item.")
@click.argument(
    "words",
    metavar="TEMPLATE [::: ITEM...]",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=files,
)
def command(
    words: tuple[str, ...],
    slots: int | None,
    keep_order: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run a command for every item, spread over the devices.

    TEMPLATE is a command of /bin/sh. The item, quoted for the shell, replaces every {}, or
    follows it where there is none; put no quotes of your own around {}. Items come after ':::',
    or from standard input, one a line, an empty line being an item. A device takes the next item
    as soon as it is free. What an item prints comes out whole, as the items end.

    \b
    exo-gpu map 'gzip -9 -k {}' ::: *.jsonl
    find . -name '*.wav' | exo-gpu map 'python transcribe.py {}'
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from exo.gpu.cli.progress import Progress
    from exo.gpu.configuration import load_configuration
    from exo.gpu.coordination.commands import map_commands
    from exo.gpu.vocabulary.job import Ending

    configuration = load_configuration(os.environ)
    slots = slots or configuration.value("map.slots")
    keep_order = keep_order or configuration.value("map.keep_order")
    template, arguments = _split(words)
    items = _lines_of_stdin() if arguments is None else arguments
    patience = wait_seconds(options)
    request = make_request(f"exo-gpu map {template}", options)
    if request.count > 1:
        raise click.UsageError("--request: an item has one device, and a count is asked for")
    commands = (fill(template, item) for item in items)
    progress = Progress(sys.stderr, total=None if arguments is None else len(arguments))
    with (
        _ending_on_signals(),
        map_commands(commands, request=request, slots=slots, wait_seconds=patience) as results,
        progress,
    ):
        left_out = left_out_line(results.left_out)
        if left_out:
            complain(left_out)
        for done in in_order(results) if keep_order else results:
            with progress.aside():
                _print(done, as_json=as_json)
            succeeded = done.outcome.ending is Ending.SUCCEEDED
            progress.count(done.index, done.device_id, succeeded=succeeded)
    if progress.failed:
        complain(_failures(progress))
    return min(progress.failed, MOST_COUNTED + 1)


def _failures(progress: Progress) -> str:
    """Which items failed, counted from 1 as people and ``sed -n`` do."""
    names = ", ".join(str(index + 1) for index in progress.failed_items)
    more = " and more" if progress.failed > len(progress.failed_items) else ""
    return f"{progress.failed} of {progress.done} items failed: {names}{more}"


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


def fill(template: str, item: str) -> str:
    """The command for one item: quoted, in every ``{}``, or behind a template without one."""
    quoted = shlex.quote(item)
    return template.replace(PLACE, quoted) if PLACE in template else f"{template} {quoted}"


def in_order(results: Iterable[CommandDone]) -> Iterator[CommandDone]:
    """The same results by index; what one prints waits on disk where it is much."""
    import tempfile

    from msgspec.structs import replace

    waiting: dict[int, tuple[CommandDone, int, int, int]] = {}
    turn = 0
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        for done in results:
            out, err = done.outcome.stdout, done.outcome.stderr
            place = spool.seek(0, os.SEEK_END)
            spool.write(out + err)
            bare = replace(done, outcome=replace(done.outcome, stdout=b"", stderr=b""))
            waiting[done.index] = (bare, place, len(out), len(err))
            while turn in waiting:
                bare, place, out_bytes, err_bytes = waiting.pop(turn)
                spool.seek(place)
                out, err = spool.read(out_bytes), spool.read(err_bytes)
                yield replace(bare, outcome=replace(bare.outcome, stdout=out, stderr=err))
                turn += 1
            if not waiting:
                spool.seek(0)
                spool.truncate()


def _split(words: tuple[str, ...]) -> tuple[str, Sequence[str] | None]:
    """The template, and the items after ``:::``; None when they are on standard input.

    Raises:
        UsageError: for an empty template, a second ``:::``, or a terminal as standard input.

    """
    arguments: Sequence[str] | None = None
    if ITEMS_FOLLOW in words:
        place = words.index(ITEMS_FOLLOW)
        words, arguments = words[:place], words[place + 1 :]
        if ITEMS_FOLLOW in arguments:
            raise click.UsageError(f"more than one {ITEMS_FOLLOW!r}: items are one list here")
    template = " ".join(words)
    if not template.strip():
        raise click.UsageError("the command template is empty")
    if arguments is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError(f"no items: give them after {ITEMS_FOLLOW!r} or on standard input")
    return template, arguments


def _lines_of_stdin() -> Iterator[str]:
    """Lines as they come; unbuffered, so that no lock is held when the program ends meanwhile."""
    rest = b""
    while block := os.read(sys.stdin.fileno(), READ_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from map(os.fsdecode, lines)
    if rest:
        yield os.fsdecode(rest)


def _print(done: CommandDone, *, as_json: bool) -> None:
    outcome = done.outcome
    if as_json:
        _write(sys.stdout, _json_line(done))
    else:
        _write(sys.stdout, outcome.stdout)
        _write(sys.stderr, outcome.stderr)
    if outcome.exit_status is None or outcome.exit_status < 0:
        complain(f"item {done.index + 1} on {done.device_id}: {outcome.reason}")


def _write(stream: TextIO | None, output: bytes) -> None:
    """All of it at once; a stream that the caller closed (``>&-``) is None and takes nothing."""
    if stream is not None and output:
        stream.buffer.write(output)
        stream.buffer.flush()


def _json_line(done: CommandDone) -> bytes:
    import msgspec

    outcome = done.outcome
    fields = {
        "index": done.index,
        "command": os.fsencode(done.command).decode(errors="replace"),
        "device_id": done.device_id,
        "ending": outcome.ending.value,
        "exit_status": outcome.exit_status,
        "reason": outcome.reason,
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "stdout": outcome.stdout.decode(errors="replace"),
        "stderr": outcome.stderr.decode(errors="replace"),
    }
    return msgspec.json.encode(fields) + b"\n"
