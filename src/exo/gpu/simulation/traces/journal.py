"""Our own journal of ``exo-gpu map`` as a workload: what ran before, to run it again on paper.

It is read as its form is documented, without the code that writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from exo.gpu.simulation.jobs import Job
from exo.gpu.vocabulary.errors import TraceError

# A line is the CRC-32 of its text in hexadecimal digits, a space, and an array whose first element
# is the kind of record.
_CHECKSUM_DIGITS = 8
_COLUMNS = {"job": (8, "started_at"), "ended": (9, "ended_at"), "chunk": (6, "ended_at")}


def read_journal(path: Path) -> tuple[Job, ...]:
    """The items that ended, as jobs that all came when their job began.

    The last try of an item counts. Items that one slot did in one go share its time equally.

    Raises:
        TraceError: naming file, line and column.

    """
    began: float | None = None
    memory_bytes: int | None = None
    found: dict[int, float] = {}
    for line, record in _records(path):
        kind = record[0]
        if kind not in _COLUMNS:
            continue
        _check(path, line, record)
        if kind == "job":
            began = float(record[8])
            memory_bytes = _declared(record)
        elif kind == "ended":
            found[record[1]] = record[9] - record[8]
        else:
            items = [item for first, last in record[1] for item in range(first, last + 1)]
            for item in items:
                found[item] = (record[6] - record[5]) / len(items)
    if began is None:
        raise TraceError(f"{path}, line 1: no job begins here")
    return tuple(
        Job(
            name=f"item {item}",
            arrived_seconds=0.0,
            run_seconds=max(0.0, seconds),
            memory_bytes=memory_bytes,
        )
        for item, seconds in sorted(found.items())
    )


def _records(path: Path) -> list[tuple[int, list[Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    found: list[tuple[int, list[Any]]] = []
    # What stands behind the last end of line was not written whole.
    for number, line in enumerate(lines[:-1], start=1):
        digits, text = line[:_CHECKSUM_DIGITS], line[_CHECKSUM_DIGITS + 1 :]
        record: object = None
        if digits == b"%08x" % crc32(text):
            record = json.loads(text)
        if not isinstance(record, list) or not record:
            raise TraceError(f"{path}, line {number}, column 1: it is no record of a journal")
        found.append((number, cast("list[Any]", record)))
    return found


def _check(path: Path, line: int, record: list[Any]) -> None:
    """The columns that are read later: their number, and the last of them."""
    place, name = _COLUMNS[record[0]]
    if len(record) <= place or not isinstance(record[place], int | float):
        raise TraceError(f"{path}, line {line}, column {name}: it is not in this record")


def _declared(record: list[Any]) -> int | None:
    request: Any = record[10] if len(record) > 10 else {}
    memory: object = request.get("memory_bytes") if hasattr(request, "get") else None
    return memory if isinstance(memory, int) and memory > 0 else None
