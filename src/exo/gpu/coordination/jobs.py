"""Jobs of this user, as their journals tell of them."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.execution.job_folder import SUFFIX, jobs_folder, journals, read_ends
from exo.gpu.execution.journal import read_journal, read_records
from exo.gpu.vocabulary.errors import JournalError, NoSuchJob
from exo.gpu.vocabulary.journal import ChunkEnded, ItemEnded, JobTally
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from exo.gpu.execution.journal import Scan

logger = logging.getLogger(__name__)

LATEST = "last"


class JobState(StrEnum):
    """How a job is."""

    RUNNING = "running"
    DONE = "done"
    """Every item was tried to its end."""
    INTERRUPTED = "interrupted"
    """It ended before: killed, halted or broken off. It can be resumed."""


class JobDevice(WireValue, frozen=True):
    """What a device did of a job."""

    tries: int
    seconds: float


class JobSummary(WireValue, frozen=True, kw_only=True):
    """A job in figures; times are Unix seconds."""

    job_id: str
    kind: str
    state: JobState
    name: str
    templates: dict[str, str]
    directory: str
    started_at: float
    last_at: float | None
    """When something was last recorded."""
    total: int | None
    """None where the end of the list is not known."""
    succeeded: int
    failed: int
    left: int | None
    started_again: int
    """Items that were begun more than once."""
    devices: dict[str, JobDevice]
    path: str


class JobStory(WireValue, frozen=True, kw_only=True):
    """A job in figures, and what its journal says beyond them."""

    summary: JobSummary
    resumed_at: tuple[float, ...]
    under_way: tuple[int, ...]
    """The first items that began and of whose end nothing is recorded, from 0."""
    named_again: tuple[int, ...]
    """The first items that were begun more than once, from 0."""
    damaged_lines: tuple[int, ...]
    tail_bytes: int


def list_jobs(environ: Mapping[str, str]) -> tuple[list[JobSummary], list[str]]:
    """Every job that is kept, the newest first, and what could not be read."""
    jobs: list[JobSummary] = []
    problems: list[str] = []
    for path in journals(jobs_folder(environ)):
        try:
            jobs.append(summary_of(path))
        except JournalError as error:
            problems.append(str(error))
    return jobs, problems


def find_journal(environ: Mapping[str, str], name: str) -> Path:
    """The journal of a job by its id or a part of it, its name, ``last``, or the file itself.

    Raises:
        NoSuchJob: when there is none, or more than one.

    """
    folder = jobs_folder(environ)
    found = journals(folder)
    if name == LATEST and found:
        return found[0]
    ids = {path.name.removesuffix(SUFFIX): path for path in found}
    if name in ids:
        return ids[name]
    near = [path for job_id, path in ids.items() if name and name in job_id]
    if not near:
        near = [path for path in found if _name_of(path) == name][:1]
    if len(near) == 1:
        return near[0]
    if near:
        shown = ", ".join(path.name.removesuffix(SUFFIX) for path in near[:5])
        raise NoSuchJob(f"{name!r} means more than one job: {shown}")
    beside = Path(name + SUFFIX)
    for path in (beside, Path(name)):
        if path.is_file():
            return path
    raise NoSuchJob(f"there is no job {name!r} in {folder}; 'exo-gpu jobs' lists them")


def _name_of(path: Path) -> str | None:
    try:
        return read_ends(path).begun.name or None
    except JournalError:
        return None


def summary_of(path: Path) -> JobSummary:
    """A job in figures: from the last record where that has them, else from all.

    Raises:
        JournalError: when it cannot be read, or is no journal.

    """
    ends = read_ends(path)
    if ends.ended is None or ends.live:
        return story_of(path).summary
    ended = ends.ended
    tally = JobTally()
    tally.add(ends.begun)
    tally.add(ended)
    tally.succeeded, tally.failed = ended.succeeded, ended.failed
    tally.started_again, tally.devices = ended.started_again, ended.devices
    return _summary(path, tally, live=False)


def story_of(path: Path) -> JobStory:
    """All that a journal tells.

    Raises:
        JournalError: when it cannot be read, or is no journal.

    """
    found, live = read_journal(path)
    return _story(path, found, live=live)


def _story(path: Path, found: Scan, *, live: bool) -> JobStory:
    if found.tally.begun is None:
        raise JournalError(f"the journal {path} is empty")
    return JobStory(
        summary=_summary(path, found.tally, live=live),
        resumed_at=tuple(found.tally.resumed_at),
        under_way=found.tally.under_way,
        named_again=tuple(found.tally.named_again),
        damaged_lines=found.damaged_lines,
        tail_bytes=0 if live else found.tail_bytes,
    )


def _summary(path: Path, tally: JobTally, *, live: bool) -> JobSummary:
    begun = tally.begun
    assert begun is not None
    complete = tally.end is not None and tally.end.complete
    state = JobState.DONE if complete else JobState.INTERRUPTED
    return JobSummary(
        job_id=begun.job_id,
        kind=begun.kind.value,
        state=JobState.RUNNING if live else state,
        name=begun.name,
        templates=begun.templates,
        directory=begun.directory,
        started_at=begun.started_at,
        last_at=tally.last_at,
        total=begun.total,
        succeeded=tally.succeeded,
        failed=tally.failed,
        left=tally.left,
        started_again=tally.started_again,
        devices={name: JobDevice(*figures) for name, figures in tally.devices.items()},
        path=str(path.resolve()),
    )


def tries_of(path: Path) -> Iterator[ItemEnded | ChunkEnded]:
    """Everything that ended, in the order of the journal.

    Raises:
        JournalError: when it cannot be read.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error
    try:
        for _, _, record in read_records(descriptor):
            if isinstance(record, ItemEnded | ChunkEnded):
                yield record
    finally:
        os.close(descriptor)


def failures_of(path: Path, most: int) -> list[ItemEnded]:
    """The last try at each item that has no success, by item; the first ones, at most so many.

    Raises:
        JournalError: when it cannot be read.

    """
    failed: dict[int, ItemEnded] = {}
    tally = read_journal(path)[0].tally
    for one in tries_of(path):
        if isinstance(one, ItemEnded) and one.final and not tally.has_succeeded(one.item):
            failed[one.item] = one
            if len(failed) > 2 * most:
                failed = dict(sorted(failed.items())[:most])
    return [failed[item] for item in sorted(failed)[:most]]
