"""Our own journals of ``map`` as a workload: what ran before, to run it again on paper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from exo.gpu.execution.job_folder import SUFFIX, journals
from exo.gpu.execution.journal import read_records
from exo.gpu.simulation.jobs import Job
from exo.gpu.vocabulary.errors import TraceError
from exo.gpu.vocabulary.journal import VERSION, ChunkEnded, ItemEnded, JobBegun, Record
from exo.gpu.vocabulary.request import Request


def read_journal(path: Path) -> tuple[Job, ...]:
    """The items that ended, as jobs that all came when their job began.

    Of a folder, the items of every journal in it, at the times at which these began: a week of
    work. The last try of an item counts. Items that one slot did in one go share its time equally.
    What ran and had not ended is left out, for nobody knows how long it takes.

    Raises:
        TraceError: naming file, line and column.

    """
    if not path.is_dir():
        return _from_zero([_read_one(path)])
    found = journals(path)
    if not found:
        raise TraceError(f"{path}: there is no journal in it, no file that ends in {SUFFIX}")
    return _from_zero([_read_one(one) for one in reversed(found)])


def _from_zero(journals_read: list[tuple[float, list[Job]]]) -> tuple[Job, ...]:
    """The jobs of all, in order of arrival, which is counted from the first."""
    first = min((began for began, _ in journals_read), default=0.0)
    dated = [(began - first, job) for began, jobs in journals_read for job in jobs]
    dated.sort(key=lambda one: one[0])
    return tuple(job.at(arrived) for arrived, job in dated)


def _read_one(path: Path) -> tuple[float, list[Job]]:
    """When the job began, in Unix seconds, and its items as jobs that come at 0."""
    begun: JobBegun | None = None
    found: dict[int, float] = {}
    for line, record in _records(path):
        if isinstance(record, JobBegun):
            begun = _checked(path, line, record)
        elif isinstance(record, ItemEnded):
            found[record.item] = record.ended_at - record.started_at
        elif isinstance(record, ChunkEnded):
            seconds = (record.ended_at - record.started_at) / max(1, record.count)
            for first, last in record.items:
                found.update(dict.fromkeys(range(first, last + 1), seconds))
    if begun is None:
        raise TraceError(f"{path}, line 1: no job begins here")
    request = _request(path, begun)
    group = begun.name or " / ".join(begun.templates.values())
    jobs = [
        Job(
            name=f"{begun.job_id} item {item}",
            arrived_seconds=0.0,
            run_seconds=max(0.0, seconds),  # the clock of the wall may have been set back
            gpus=request.count,
            group=group,
            memory_bytes=request.memory_bytes,
            share=request.share,
            host_cpus=request.host_cpus,
            host_memory_bytes=request.host_memory_bytes,
            expected_seconds=request.expected_seconds,
        )
        for item, seconds in sorted(found.items())
    ]
    return begun.started_at, jobs


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """The records with their lines; a last one that was not written whole is left out.

    Raises:
        TraceError: for a file that cannot be read, and for damage in front of a sound record.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    damaged: int | None = None
    try:
        for line, _, record in read_records(descriptor):
            if record is None:
                damaged = damaged or line
                continue
            if damaged is not None:
                break
            yield line, record
        else:
            return
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    finally:
        os.close(descriptor)
    raise TraceError(f"{path}, line {damaged}, column 1: it is no record of a journal")


def _checked(path: Path, line: int, begun: JobBegun) -> JobBegun:
    if begun.version > VERSION:
        raise TraceError(
            f"{path}, line {line}, column version: {begun.version} is of a later release, this "
            f"one knows {VERSION}"
        )
    return begun


def _request(path: Path, begun: JobBegun) -> Request:
    try:
        return Request.from_dict(begun.request)
    except ValueError as error:
        raise TraceError(f"{path}, line 1, column request: {error}") from error
