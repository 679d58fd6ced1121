"""A job's journal on disk: a checksummed line for each thing that happened, never rewritten.

A line is the CRC-32 of its text in eight hexadecimal digits, a space, and the record as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import msgspec

from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import VERSION, JobBegun, JobTally, Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHECKSUM_DIGITS = 8
_READ_BYTES = 2**20

# A record holds one template at most, which a shell's command line could hold.
_LONGEST_LINE_BYTES = 2**24

# Who only looks whether a job is running has its journal locked for so long at most.
_LOOK_SECONDS = 0.2

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The line of a record, its end included."""
    text = _encoder.encode(record)
    return b"%08x %s\n" % (crc32(text), text)


def decode_record(line: bytes) -> Record | None:
    """The record of a line without its end; None for one that is damaged in any way."""
    checksum, space, text = line[:_CHECKSUM_DIGITS], line[_CHECKSUM_DIGITS:][:1], line[9:]
    if space != b" " or checksum != b"%08x" % crc32(text):
        return None
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError:
        return None


class Scan(NamedTuple):
    """What a journal's file holds."""

    tally: JobTally
    good_bytes: int
    """Up to the end of the last sound record."""
    tail_bytes: int
    """Behind it: a last record that was not written whole, or is damaged."""
    damaged_lines: tuple[int, ...]
    """Damaged lines in front of sound ones, from 1. What they recorded is not known: an item
    whose success was among it counts as never ended."""


def read_records(descriptor: int) -> Iterator[tuple[int, int, Record | None]]:
    """Each line of an open file from its start: its number from 1, where it ends, its record.

    The record is None for a damaged line, and for a last one without an end.
    """
    rest, offset, number, end, dropped = b"", 0, 0, 0, 0
    while block := os.pread(descriptor, _READ_BYTES, offset):
        offset += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number, end = number + 1, end + dropped + len(line) + 1
            yield number, end, None if dropped else decode_record(line)
            dropped = 0
        if len(rest) > _LONGEST_LINE_BYTES:
            rest, dropped = b"", dropped + len(rest)
    if rest or dropped:
        yield number + 1, offset, None


def scan(descriptor: int, name: Path) -> Scan:
    """Read a journal; ``name`` is for messages.

    Raises:
        JournalError: when it is no journal, its first record is damaged, or a later release
            wrote it.

    """
    tally = JobTally()
    good_bytes = size = 0
    bad: list[int] = []
    damaged: list[int] = []
    for number, size, record in read_records(descriptor):
        if number == 1 and not isinstance(record, JobBegun):
            raise JournalError(f"{name} is no journal of a job, or its first line is damaged")
        if record is None:
            bad.append(number)
            continue
        tally.add(record)
        good_bytes = size
        damaged += bad
        bad.clear()
    if tally.begun is not None and tally.begun.version > VERSION:
        raise JournalError(
            f"{name} was written by a later release (version {tally.begun.version}, this one "
            f"knows {VERSION})"
        )
    return Scan(tally, good_bytes, size - good_bytes, tuple(damaged))


class Journal:
    """An open journal that this process alone writes; each record is one write to the kernel.

    Once :meth:`write` has returned, the record outlives this process; with ``sync`` also a loss
    of power. May be written from several threads.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        """Open or make the file and lock it.

        Raises:
            JournalError: when it is in use, or cannot be opened.

        """
        self.path = path
        self._sync = sync
        self._door = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"no journal can be kept at {path}: {error.strerror}") from error
        if not _lock(self._descriptor):
            os.close(self._descriptor)
            raise JournalError(f"the journal {path} is in use: its job is running")
        self._size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Journal:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def begin(self, header: JobBegun) -> None:
        """Start anew with this job; what the file held before is gone.

        Raises:
            JournalError: when it cannot be written.

        """
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            problem = f"no journal can be kept at {self.path}: {error.strerror}"
            raise JournalError(problem) from error
        self._size = 0
        self.write(header)

    def recover(self) -> Scan:
        """Read it, and cut off a last record that was not written whole.

        Raises:
            JournalError: when it is no journal, or not one that can be gone on with.

        """
        found = scan(self._descriptor, self.path)
        if found.tail_bytes:
            os.ftruncate(self._descriptor, found.good_bytes)
            self._size = found.good_bytes
        return found

    def write(self, record: Record) -> None:
        """Append one record.

        Raises:
            JournalError: when it could not be written whole; nothing of it is left then.

        """
        line = encode_record(record)
        with self._door:
            problem = ""
            try:
                written = os.write(self._descriptor, line)
                if self._sync:
                    os.fsync(self._descriptor)
            except OSError as error:
                written, problem = 0, error.strerror or str(error)
            if written == len(line):
                self._size += written
                return
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
        raise JournalError(
            f"the journal {self.path} cannot be written: {problem or 'no space is left'}"
        )

    def close(self) -> None:
        """Let go of it; harmless twice."""
        with self._door:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _lock(descriptor: int) -> bool:
    """Lock a journal for writing; False when it stays in use."""
    ends = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends:
                return False
            time.sleep(_LOOK_SECONDS / 20)
        except OSError:
            return True  # a file system without locks: nobody is kept out, and nothing else is lost
        else:
            return True


def read_journal(path: Path) -> tuple[Scan, bool]:
    """What a journal holds, and whether its job is running; changes nothing.

    Raises:
        JournalError: when it cannot be read, or is no journal.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error
    try:
        return scan(descriptor, path), is_live(descriptor)
    finally:
        os.close(descriptor)


def is_live(descriptor: int) -> bool:
    """Whether another process has the journal locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
