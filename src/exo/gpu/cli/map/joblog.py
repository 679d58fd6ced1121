"""The table of ``--joblog``, in GNU parallel's columns; the device stands for the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.job import Cause

if TYPE_CHECKING:
    from pathlib import Path

    from exo.gpu.coordination.commands import CommandDone

HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"

JOURNAL_SUFFIX = ".journal"
"""The journal beside it, which alone decides what is resumed."""

_NO_STATUS = -1  # GNU parallel's status for what took too long, or never began


class Joblog:
    """The open table; use it in a ``with`` block."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Begin it anew, or go on behind its last whole line.

        Raises:
            JournalError: when it cannot be written, or what is to be gone on with is no such table.

        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o666)
            self._prepare(path, resume=resume)
        except OSError as error:
            raise JournalError(f"--joblog: {path}: {error.strerror}") from error

    def __enter__(self) -> Joblog:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._descriptor)

    def write(self, done: CommandDone, *, output_bytes: int) -> None:
        """A line for an item that ended."""
        os.write(self._descriptor, joblog_line(done, output_bytes))

    def _prepare(self, path: Path, *, resume: bool) -> None:
        size = os.fstat(self._descriptor).st_size
        if not resume or not size:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, HEADER)
        elif os.pread(self._descriptor, len(HEADER), 0) != HEADER:
            os.close(self._descriptor)
            raise JournalError(f"--joblog: {path} is no table of jobs: it is left as it is")
        elif os.pread(self._descriptor, 1, size - 1) != b"\n":
            tail = os.pread(self._descriptor, 2**20, max(0, size - 2**20))
            os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)


def joblog_line(done: CommandDone, output_bytes: int) -> bytes:
    """One line; a line break within the command stays one of it, as in GNU parallel."""
    outcome = done.outcome
    status = outcome.exit_status
    late = outcome.cause is Cause.TIMEOUT
    exit_value = _NO_STATUS if status is None or late else max(status, 0)
    signal = max(-(status or 0), 0)
    seconds = max(0.0, outcome.ended_at - outcome.started_at)
    figures = (
        f"{done.index + 1}\t{done.device_id or '-'}\t{outcome.started_at:.3f}\t{seconds:10.3f}\t0\t"
        f"{output_bytes}\t{exit_value}\t{signal}\t"
    )
    return figures.encode() + os.fsencode(done.command) + b"\n"
