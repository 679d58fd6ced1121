"""Where items come from: words, files and standard input, alone or combined, not held in memory."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Marks of a list of items: its words follow, or its files; "+" links it to the list before.
MARKS = (":::", "::::", ":::+", "::::+")

READ_BYTES = 65536  # what a pipe holds on Linux

_STDIN = "-"


class Source:
    """One list of items; may be iterated more than once, unless it is standard input."""

    def __init__(self, words: Sequence[str], *, files: bool, linked: bool, end: bytes) -> None:
        self.words = words
        self.files = files
        self.linked = linked
        self._end = end
        self._kept: list[str] | None = None

    @property
    def reads_stdin(self) -> bool:
        """Whether its items come from standard input."""
        return self.files and _STDIN in self.words

    def __iter__(self) -> Iterator[str]:
        """The items, as they come."""
        if not self.files:
            return iter(self.words)
        if self._kept is not None:
            return iter(self._kept)
        return itertools.chain.from_iterable(map(self._lines_of, self.words))

    def keep(self) -> None:
        """Hold the items in memory where they cannot be read twice."""
        if self.reads_stdin:
            self._kept = list(self)

    def count(self) -> int | None:
        """How many there are; None where that shows only at the end."""
        if not self.files:
            return len(self.words)
        if self._kept is not None:
            return len(self._kept)
        total = 0
        for word in self.words:
            lines = _count_lines(word, self._end)
            if lines is None:
                return None
            total += lines
        return total

    def _lines_of(self, word: str) -> Iterator[str]:
        if word == _STDIN:
            return lines_of(_stdin_descriptor(), self._end, "standard input")
        return _lines_of_file(word, self._end)


class Items:
    """All items of a run: each a tuple with an argument from every list.

    Unlinked lists are combined, the last one turning fastest; a linked one goes along with the
    list before it, and the shorter of the two ends both.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        readers = [source for source in sources if source.reads_stdin]
        if sum(source.words.count(_STDIN) for source in readers) > 1:
            raise click.UsageError("standard input can be one list only")
        groups: list[list[Source]] = []
        for source in sources:
            if source.linked and groups:
                groups[-1].append(source)
            else:
                groups.append([source])
        self._groups = groups

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The items, as they come."""
        for source in itertools.chain.from_iterable(self._groups[1:]):
            source.keep()
        return _combined(self._groups)

    def count(self) -> int | None:
        """How many there are; None where that shows only at the end."""
        total = 1
        for group in self._groups:
            counts = [source.count() for source in group]
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                return None
            total *= min(known)
        return total


def _combined(groups: Sequence[Sequence[Source]]) -> Iterator[tuple[str, ...]]:
    first, *others = groups
    for arguments in zip(*first, strict=False):
        if others:
            for rest in _combined(others):
                yield (*arguments, *rest)
        else:
            yield arguments


class Words(NamedTuple):
    """The words of the command line, told apart."""

    template: tuple[str, ...]
    sources: tuple[Source, ...]


def split_words(words: Sequence[str], *, null: bool) -> Words:
    """The words before the first list of items, and the lists; standard input where there is none.

    Raises:
        UsageError: for no list at all while standard input is a terminal, or files that are none.

    """
    end = b"\0" if null else b"\n"
    places = [place for place, word in enumerate(words) if word in MARKS]
    sources: list[Source] = []
    for place, until in itertools.zip_longest(places, places[1:], fillvalue=len(words)):
        mark, listed = words[place], words[place + 1 : until]
        files = mark.startswith("::::")
        if files and not listed:
            raise click.UsageError(f"{mark!r} is followed by the names of files")
        for name in listed if files else ():
            _check_readable(name)
        # Each file of "::::" is a list of its own, as in GNU parallel.
        lists = [[name] for name in listed] if files else [listed]
        linked = mark.endswith("+")
        sources += [Source(one, files=files, linked=linked, end=end) for one in lists]
    if not sources:
        if sys.stdin is None or sys.stdin.isatty():
            raise click.UsageError("no items: give them after ':::' or on standard input")
        sources = [Source([_STDIN], files=True, linked=False, end=end)]
    return Words(tuple(words[: places[0]] if places else words), tuple(sources))


def lines_of(descriptor: int, end: bytes, name: str) -> Iterator[str]:
    """Lines as they come; unbuffered, so that no lock is held when the program ends meanwhile.

    Raises:
        OSError: when the file breaks, with its ``name``.

    """
    rest = b""
    while block := _read(descriptor, name):
        *lines, rest = (rest + block).split(end)
        yield from map(os.fsdecode, lines)
    if rest:
        yield os.fsdecode(rest)


def _read(descriptor: int, name: str) -> bytes:
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def _lines_of_file(name: str, end: bytes) -> Iterator[str]:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from lines_of(descriptor, end, name)
    finally:
        os.close(descriptor)


def _stdin_descriptor() -> int:
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    return sys.stdin.fileno()


def _check_readable(name: str) -> None:
    if name == _STDIN:
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        if folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise click.UsageError(f"{name!r} cannot be read: {error.strerror}") from error


def _count_lines(name: str, end: bytes) -> int | None:
    """Lines of a regular file, also of one that standard input is; None for a pipe."""
    descriptor = _stdin_descriptor() if name == _STDIN else os.open(name, os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        lines, last = 0, end
        while block := os.pread(descriptor, 2**20, offset):
            offset += len(block)
            lines += block.count(end)
            last = block[-1:]
        return lines + (last != end)
    finally:
        if name != _STDIN:
            os.close(descriptor)
