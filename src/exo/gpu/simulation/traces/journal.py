"""Our own journal of ``exo-gpu map`` as a workload: what ran before, to run it again on paper."""

from __future__ import annotations

import os
from pathlib import Path

from exo.gpu.execution.journal import read_records
from exo.gpu.vocabulary.journal import ChunkEnded, ItemEnded, JobBegun, Record

from exo.gpu.simulation.jobs import Job
from exo.gpu.vocabulary.errors import TraceError


def read_journal(path: Path) -> tuple[Job, ...]:
    """The items that ended, as jobs that all came when their job began.

    The last try of an item counts. Items that one slot did in one go share its time equally. What
    stands behind the last end of line was not written whole, and is left out.

    Raises:
        TraceError: naming file and line.

    """
    memory_bytes: int | None = None
    seconds: dict[int, float] = {}
    records = _records(path)
    if not records or not isinstance(records[0], JobBegun):
        raise TraceError(f"{path}, line 1: no job begins here")
    for record in records:
        if isinstance(record, JobBegun):
            declared = record.request.get("memory_bytes")
            memory_bytes = declared if isinstance(declared, int) and declared > 0 else None
        elif isinstance(record, ItemEnded):
            seconds[record.item] = record.ended_at - record.started_at
        elif isinstance(record, ChunkEnded):
            each = (record.ended_at - record.started_at) / max(1, record.count)
            for first, last in record.items:
                seconds.update(dict.fromkeys(range(first, last + 1), each))
    return tuple(
        Job(
            name=f"item {item}",
            arrived_seconds=0.0,
            run_seconds=max(0.0, took),
            memory_bytes=memory_bytes,
        )
        for item, took in sorted(seconds.items())
    )


def _records(path: Path) -> list[Record]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    try:
        found = list(read_records(descriptor))
    finally:
        os.close(descriptor)
    for line, _, record in found[:-1]:
        if record is None:
            raise TraceError(f"{path}, line {line}: it is no record of a journal, or is damaged")
    return [record for _, _, record in found if record is not None]
