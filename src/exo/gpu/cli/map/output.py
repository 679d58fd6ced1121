"""What items print: whole, in any order or that of the items, never held in memory where large."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from array import array
from typing import IO, TYPE_CHECKING, Any, TextIO

import msgspec
from msgspec.structs import replace

from exo.gpu.cli.main import complain
from exo.gpu.vocabulary.job import Cause, Ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exo.gpu.coordination.commands import CommandDone
    from exo.gpu.vocabulary.job import HeldOutput

# What waits for its turn under --keep-order stays in memory up to here, then on disk.
SPOOL_BYTES = 4 * 2**20

COPY_BYTES = 2**18

_ABSENT = -1

# A list is cut at its front not for each item, but for so many.
_FORGOTTEN_AT_ONCE = 2**16


class Output:
    """What an item printed on one stream, wherever it is."""

    def __init__(self, text: bytes, held: HeldOutput | None) -> None:
        self._text = text
        self._held = held
        self.size_bytes = len(text) if held is None else held.size_bytes

    def blocks(self) -> Iterator[bytes]:
        """All of it, in pieces that fit in memory."""
        if self._held is None:
            if self._text:
                yield self._text
            return
        offset = 0
        while block := self._held.read(offset, COPY_BYTES):
            offset += len(block)
            yield block

    def whole(self) -> bytes:
        """All of it at once."""
        return b"".join(self.blocks())


def outputs(done: CommandDone) -> tuple[Output, Output]:
    """What an item wrote to standard output, and to standard error."""
    outcome = done.outcome
    return (
        Output(outcome.stdout, outcome.held_stdout),
        Output(outcome.stderr, outcome.held_stderr),
    )


class Printer:
    """Writes what items printed to the streams of this process; says what ended oddly."""

    def __init__(self, *, as_json: bool, tag: bool) -> None:
        """With ``tag`` each line begins with the label of its item."""
        self._as_json = as_json
        self._tag = tag

    def show(self, done: CommandDone) -> int:
        """Print one item's output; returns how many bytes it wrote to standard output."""
        stdout, stderr = outputs(done)
        if self._as_json:
            _write(sys.stdout, iter((_json_line(done, stdout, stderr),)))
        else:
            tag = os.fsencode(done.label) + b"\t" if self._tag else b""
            _write(sys.stdout, tagged(stdout.blocks(), tag))
            _write(sys.stderr, tagged(stderr.blocks(), tag))
        outcome = done.outcome
        if outcome.ending is not Ending.SUCCEEDED and outcome.cause is not Cause.EXIT_STATUS:
            complain(f"item {done.index + 1} on {done.device_id}: {outcome.reason}")
        for held in (outcome.held_stdout, outcome.held_stderr):
            if held is not None:
                held.close()
        return stdout.size_bytes


def tagged(blocks: Iterator[bytes], tag: bytes) -> Iterator[bytes]:
    """The same with the tag before each line; the last line gets an end where it has none."""
    if not tag:
        yield from blocks
        return
    at_start = True
    for block in blocks:
        lines = block.split(b"\n")
        last = lines.pop()
        marked = b"".join(
            (tag if place or at_start else b"") + line + b"\n" for place, line in enumerate(lines)
        )
        if last:
            marked += (tag if lines or at_start else b"") + last
        at_start = not last
        yield marked
    if not at_start:
        yield b"\n"


def _write(stream: TextIO | None, blocks: Iterator[bytes]) -> None:
    """All of it; a stream that the caller closed (``>&-``) is None and takes nothing."""
    wrote = False
    for block in blocks:
        if stream is None:
            return
        stream.buffer.write(block)
        wrote = True
    if wrote and stream is not None:
        stream.buffer.flush()


def _json_line(done: CommandDone, stdout: Output, stderr: Output) -> bytes:
    outcome = done.outcome
    fields: dict[str, Any] = {
        "index": done.index,
        "command": os.fsencode(done.command).decode(errors="replace"),
        "device_id": done.device_id,
        "ending": outcome.ending.value,
        "exit_status": outcome.exit_status,
        "reason": outcome.reason,
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "stdout": stdout.whole().decode(errors="replace"),
        "stderr": stderr.whole().decode(errors="replace"),
    }
    return msgspec.json.encode(fields) + b"\n"


class _Stored:
    """An output that waits in the spool, where it is too much to hold in memory."""

    def __init__(self, spool: IO[bytes], place: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._spool = spool
        self._place = place

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end."""
        self._spool.seek(self._place + offset)
        return self._spool.read(min(count, max(0, self.size_bytes - offset)))

    def close(self) -> None:
        """Nothing to do: the spool goes as a whole."""


class _Waiting:
    """Ends that wait for their turn: eight bytes for each in memory, all else in the spool."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._places = array("q")
        self._first = 0
        self.count = 0

    def put(self, turn: int, done: CommandDone) -> None:
        """Keep an end until its turn."""
        place = self._spool.seek(0, os.SEEK_END)
        sizes: list[int] = []
        for output in outputs(done):
            sizes.append(output.size_bytes)
            for block in output.blocks():
                self._spool.write(block)
        outcome = done.outcome
        for held in (outcome.held_stdout, outcome.held_stderr):
            if held is not None:
                held.close()
        bare = replace(outcome, stdout=b"", stderr=b"", held_stdout=None, held_stderr=None)
        start = self._spool.tell()
        pickle.dump((place, sizes, replace(done, outcome=bare)), self._spool)
        self._reach(turn)
        self._places[turn - self._first] = start
        self.count += 1

    def take(self, turn: int) -> CommandDone | None:
        """The end whose turn it is, or None while it has not come."""
        if turn - self._first >= len(self._places) or self._places[turn - self._first] == _ABSENT:
            return None
        self._spool.seek(self._places[turn - self._first])
        # Written above, by this process, to a file that nobody else can open.
        place, sizes, done = pickle.load(self._spool)  # noqa: S301
        self.count -= 1
        stdout, stderr = (self._stored(place, sizes[0]), self._stored(place + sizes[0], sizes[1]))
        return replace(
            done,
            outcome=replace(
                done.outcome,
                stdout=stdout if isinstance(stdout, bytes) else b"",
                stderr=stderr if isinstance(stderr, bytes) else b"",
                held_stdout=stdout if isinstance(stdout, _Stored) else None,
                held_stderr=stderr if isinstance(stderr, _Stored) else None,
            ),
        )

    def forget(self, turn: int) -> None:
        """Those before this turn are through; with none left, the spool begins anew."""
        if not self.count:
            self._spool.seek(0)
            self._spool.truncate()
            del self._places[:]
            self._first = turn
        elif turn - self._first > _FORGOTTEN_AT_ONCE:
            del self._places[: turn - self._first]
            self._first = turn

    def _reach(self, turn: int) -> None:
        missing = turn - self._first + 1 - len(self._places)
        if missing > 0:
            self._places.extend(array("q", [_ABSENT]) * missing)

    def _stored(self, place: int, size_bytes: int) -> bytes | _Stored:
        if size_bytes > COPY_BYTES:
            return _Stored(self._spool, place, size_bytes)
        self._spool.seek(place)
        return self._spool.read(size_bytes)


def in_order(results: Iterable[CommandDone]) -> Iterator[CommandDone]:
    """The same results by turn; what one prints waits on disk where it is much."""
    turn = 0
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        waiting = _Waiting(spool)
        for done in results:
            if done.turn == turn:
                yield done
                turn += 1
                waiting.forget(turn)
            else:
                waiting.put(done.turn, done)
            while waiting.count and (next_one := waiting.take(turn)) is not None:
                yield next_one
                turn += 1
                waiting.forget(turn)
        # Where the run was stopped, some turns never come: what ended behind them is shown all
        # the same.
        while waiting.count:
            next_one = waiting.take(turn)
            turn += 1
            if next_one is not None:
                yield next_one
