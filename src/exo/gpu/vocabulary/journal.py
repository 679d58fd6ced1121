"""The records of a job's journal, and what they add up to."""

from __future__ import annotations

from array import array
from enum import StrEnum
from typing import Annotated, Any

import msgspec

VERSION = 1
"""A journal of a later version is refused: what it records may mean something else."""

LARGEST_ITEM = 2**31 - 1
"""The tally holds five bytes for every item up to the highest."""

ItemIndex = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_ITEM)]


class JobKind(StrEnum):
    """What the items of a job are."""

    COMMANDS = "commands"
    MAP = "map"


class JobBegun(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="job"):
    """The first record: what the job is. Times are Unix seconds, here and below."""

    version: int = VERSION
    job_id: str
    kind: JobKind
    templates: dict[str, str]
    """Runtime -> template; of one for all runtimes, and of a Python function's name, ``""``."""
    name: str = ""
    directory: str = ""
    """The working directory of whoever began it."""
    total: int | None = None
    """How many items there are; None where the end of the list is not known beforehand."""
    started_at: float
    pid: int
    request: dict[str, Any] = {}
    options: dict[str, Any] = {}


class JobResumed(msgspec.Struct, frozen=True, array_like=True, tag="resumed"):
    """Somebody goes on with it: whatever had begun and not ended has ended unseen."""

    at: float
    pid: int


class ItemBegun(msgspec.Struct, frozen=True, array_like=True, tag="begun"):
    """Written before the item's process starts, so that a start is never unknown."""

    item: ItemIndex
    at: float


class ItemEnded(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """One try at an item that ended; the last of them is ``final``."""

    item: ItemIndex
    ending: str
    """``succeeded``, ``failed`` or ``died``."""
    cause: str
    """What made it fail, as far as that is known; empty for a success."""
    device_id: str | None
    slot: int
    attempt: int
    """Counts from 1 within one run of the job."""
    final: bool
    started_at: float
    ended_at: float
    exit_status: int | None = None
    signal: int | None = None
    digest: int = 0
    """CRC-32 of the item's text, so that another list is not taken for this one."""
    reason: str = ""
    """Why it failed, in words; empty for a success."""

    @property
    def succeeded(self) -> bool:
        """Whether the item is done."""
        return self.ending == "succeeded"


class ChunkEnded(msgspec.Struct, frozen=True, array_like=True, tag="chunk"):
    """Items of a Python map that one slot did in one go; ``failed`` are those that raised.

    ``items`` are (first, last) of each run of neighbours, both included.
    """

    items: tuple[tuple[ItemIndex, ItemIndex], ...]
    failed: tuple[ItemIndex, ...]
    device_id: str | None
    slot: int
    started_at: float
    ended_at: float

    @property
    def count(self) -> int:
        """How many items it names."""
        return sum(last - first + 1 for first, last in self.items)


class JobEnded(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="end"):
    """The last record of a run that came to its end, with what the whole job came to."""

    at: float
    complete: bool
    """Whether every item was tried to its end; False where ``--halt`` stopped it before."""
    succeeded: int
    failed: int
    started_again: int
    devices: dict[str, tuple[int, float]]
    """Device -> tries that ended there, and their seconds in total."""


Record = JobBegun | JobResumed | ItemBegun | ItemEnded | ChunkEnded | JobEnded


def item_ranges(items: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Item numbers as runs of neighbours: ``(1, 2, 3, 7)`` as ``((1, 3), (7, 7))``."""
    runs: list[tuple[int, int]] = []
    for item in sorted(set(items)):
        if runs and runs[-1][1] == item - 1:
            runs[-1] = (runs[-1][0], item)
        else:
            runs.append((item, item))
    return tuple(runs)


_NOTHING, _BEGUN, _FAILED, _SUCCEEDED = range(4)
_STATE = 0b11
_TWICE = 0b100

# Enough to name in a message; the records have them all.
_NAMED = 20


class JobTally:
    """What the records of a journal say in total; five bytes for each item.

    A success is final: no record after it takes it back.
    """

    def __init__(self) -> None:
        self.begun: JobBegun | None = None
        self.resumed_at: list[float] = []
        self.end: JobEnded | None = None
        """None from every new run on, until that one comes to its end."""
        self.succeeded = 0
        self.failed = 0
        self.started_again = 0
        """Items that were begun more than once, so that their effects may have come twice."""
        self.named_again: list[int] = []
        """The first of them, by index."""
        self.devices: dict[str, tuple[int, float]] = {}
        self.last_at: float | None = None
        """The time of the last record."""
        self._states = bytearray()
        self._digests = array("I")

    def add(self, record: Record) -> None:
        """Take one more record, in the order of the journal."""
        match record:
            case ItemBegun():
                self._item_begun(record.item)
                self.last_at = record.at
            case ItemEnded():
                self._item_ended(record)
            case ChunkEnded():
                self._chunk_ended(record)
            case JobBegun():
                self.begun, self.last_at = record, record.started_at
            case JobResumed():
                self.resumed_at.append(record.at)
                self.end, self.last_at = None, record.at
            case JobEnded():
                self.end, self.last_at = record, record.at

    def has_succeeded(self, item: int, digest: int | None = None) -> bool:
        """Whether a success of this item is recorded; with ``digest``, of this very item."""
        if item >= len(self._states) or self._states[item] & _STATE != _SUCCEEDED:
            return False
        return digest is None or self._digests[item] == digest

    @property
    def under_way(self) -> tuple[int, ...]:
        """The first items that have begun and not ended, by index."""
        begun = (item for item, state in enumerate(self._states) if state & _STATE == _BEGUN)
        return tuple(item for item, _ in zip(begun, range(_NAMED), strict=False))

    @property
    def left(self) -> int | None:
        """How many items have not ended yet; None where nobody knows how many there are."""
        if self.end is not None and self.end.complete:
            return 0
        if self.begun is None or self.begun.total is None:
            return None
        return max(0, self.begun.total - self.succeeded - self.failed)

    def _reach(self, item: int) -> None:
        missing = item + 1 - len(self._states)
        if missing > 0:
            self._states.extend(bytes(missing))
            self._digests.extend(array("I", bytes(self._digests.itemsize * missing)))

    def _item_begun(self, item: int) -> None:
        self._reach(item)
        state = self._states[item] & _STATE
        if state != _NOTHING:
            self._again(item)
        if state == _FAILED:
            self.failed -= 1
        if state != _SUCCEEDED:
            self._states[item] = self._states[item] & ~_STATE | _BEGUN

    def _again(self, item: int) -> None:
        if not self._states[item] & _TWICE:
            self._states[item] |= _TWICE
            self.started_again += 1
            if len(self.named_again) < _NAMED:
                self.named_again.append(item)

    def _item_ended(self, record: ItemEnded) -> None:
        self._reach(record.item)
        if record.attempt > 1:
            self._again(record.item)
        if record.final:
            self._settle(record.item, succeeded=record.succeeded)
        if record.succeeded:
            self._digests[record.item] = record.digest
        self._count(record.device_id, 1, record.ended_at - record.started_at)
        self.last_at = record.ended_at

    def _chunk_ended(self, record: ChunkEnded) -> None:
        failed = set(record.failed)
        for first, last in record.items:
            self._reach(last)
            for item in range(first, last + 1):
                self._settle(item, succeeded=item not in failed)
        self._count(record.device_id, record.count, record.ended_at - record.started_at)
        self.last_at = record.ended_at

    def _settle(self, item: int, *, succeeded: bool) -> None:
        state = self._states[item] & _STATE
        if state == _SUCCEEDED:
            return
        self.failed -= state == _FAILED
        self.failed += not succeeded
        self.succeeded += succeeded
        after = _SUCCEEDED if succeeded else _FAILED
        self._states[item] = self._states[item] & ~_STATE | after

    def _count(self, device_id: str | None, items: int, seconds: float) -> None:
        if device_id is not None:
            tries, total = self.devices.get(device_id, (0, 0.0))
            self.devices[device_id] = (tries + items, total + seconds)
