"""One shell command in a fresh process group, and what it printed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from exo.gpu.execution.outcome import describe_exit
from exo.gpu.vocabulary.job import Ending, Outcome, Work

if TYPE_CHECKING:
    from collections.abc import Mapping

# More than this is not read into memory: whoever prints it reads it from its file.
HELD_BYTES = 2**20


class OutputFile:
    """A :class:`~exo.gpu.vocabulary.job.HeldOutput` in a file that has no name."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._descriptor = descriptor

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end."""
        return os.pread(self._descriptor, min(count, max(0, self.size_bytes - offset)), offset)

    def close(self) -> None:
        """Let go of it; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        """An output that nobody took is gone."""
        self.close()


def run_command(
    work: Work,
    environ: Mapping[str, str],
    keep_open: tuple[int, ...],
    running: list[subprocess.Popen[bytes]],
) -> Outcome:
    """Run one shell command in a fresh process group and capture what it prints.

    The process is in ``running`` while it lives, so that another thread can end it.
    """
    started = time.time()
    outputs: list[int] = []
    try:
        # Files, not pipes: what the command leaves running in the background holds up nobody.
        outputs += [_nameless_file(), _nameless_file()]
        process = subprocess.Popen(
            ["/bin/sh", "-c", work.command or ""],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=outputs[0],
            stderr=outputs[1],
            pass_fds=keep_open,
            process_group=0,
        )
    except (OSError, ValueError) as error:
        for descriptor in outputs:
            os.close(descriptor)
        return _not_started(work, started, error)
    running.append(process)
    try:
        status = process.wait()
    finally:
        running.remove(process)
    stdout, stderr = (_taken(descriptor) for descriptor in outputs)
    return Outcome(
        item=work.items[0],
        ending=Ending.FAILED if status else Ending.SUCCEEDED,
        started_at=started,
        ended_at=time.time(),
        reason=f"the command {describe_exit(status)}" if status else "",
        exit_status=status,
        stdout=stdout if isinstance(stdout, bytes) else b"",
        stderr=stderr if isinstance(stderr, bytes) else b"",
        held_stdout=stdout if isinstance(stdout, OutputFile) else None,
        held_stderr=stderr if isinstance(stderr, OutputFile) else None,
    )


def _not_started(work: Work, started: float, error: Exception) -> Outcome:
    reason = f"the shell cannot be started: {error}"
    return Outcome(
        item=work.items[0],
        ending=Ending.FAILED,
        started_at=started,
        ended_at=time.time(),
        reason=reason,
        stderr=f"{reason}\n".encode(),
    )


def _nameless_file() -> int:
    """A file without a name, which is gone with its last descriptor."""
    if hasattr(os, "O_TMPFILE"):
        # Where the file system cannot, it takes two steps.
        with contextlib.suppress(OSError):
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            return os.open(tempfile.gettempdir(), flags, 0o600)
    descriptor, path = tempfile.mkstemp(prefix="exo-gpu-")
    os.unlink(path)  # noqa: PTH108 - a path that was never an object
    return descriptor


def _taken(descriptor: int) -> bytes | OutputFile:
    """What was written to the file; where that is much, the file itself."""
    size = os.fstat(descriptor).st_size
    if size > HELD_BYTES:
        return OutputFile(descriptor, size)
    try:
        return os.pread(descriptor, size, 0) if size else b""
    finally:
        os.close(descriptor)
