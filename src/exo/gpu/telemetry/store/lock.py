"""Who may write a history: one process, the holder of a lock beside the file."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from pathlib import Path


class WriterElsewhere(WireValue, frozen=True, kw_only=True):
    """The process that writes a history already; None for what it did not say."""

    path: str
    pid: int | None = None
    command: str | None = None
    since: float | None = None
    """Unix seconds."""

    def __str__(self) -> str:
        """Who it is, in one line."""
        who = f"process {self.pid} ({self.command})" if self.pid else "another process"
        return f"{self.path} is written by {who} already"


class WriterLock:
    """An exclusive lock on a file beside the history; the kernel frees it with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another process write; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def take_lock(path: Path) -> WriterLock | WriterElsewhere:
    """The lock of the history at ``path``, or who has it.

    Raises:
        StoreError: when the file of the lock cannot be made.

    """
    beside = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return _holder(path, beside)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"{beside} cannot be locked: {error}") from error
    holder = WriterElsewhere(
        path=str(path), pid=os.getpid(), command=" ".join(sys.argv)[:200], since=time.time()
    )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.to_json().encode(), 0)
    except OSError:
        pass  # a full disk: the lock holds, and only its holder's name is not told
    return WriterLock(descriptor)


def _holder(path: Path, beside: Path) -> WriterElsewhere:
    try:
        return msgspec.structs.replace(
            WriterElsewhere.from_json(beside.read_bytes()), path=str(path)
        )
    except (OSError, ValueError):
        return WriterElsewhere(path=str(path))
