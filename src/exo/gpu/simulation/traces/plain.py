"""Jobs in a plain table, for workloads that come from nowhere else."""

from __future__ import annotations

from pathlib import Path

from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.traces.columns import TraceRow, read_table
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.units import parse_size

COLUMNS = ("arrived_seconds", "run_seconds")


def read_plain(path: Path) -> tuple[Job, ...]:
    """The jobs of a table with ``arrived_seconds`` and ``run_seconds``.

    It may also have ``gpus``, ``memory`` (of each GPU, such as ``8GiB``), ``share``, ``host_cpus``,
    ``expected_seconds``, ``group`` and ``name``; an empty cell is as if the column were not there.

    Raises:
        TraceError: naming file, line and column.

    """
    return tuple(_job(row) for row in read_table(path, COLUMNS))


def _job(row: TraceRow) -> Job:
    return Job(
        name=row.text("name") or f"line {row.line}",
        arrived_seconds=row.number("arrived_seconds"),
        run_seconds=row.number("run_seconds"),
        gpus=row.whole("gpus", low=1) if row.text("gpus") else 1,
        group=row.text("group"),
        memory_bytes=_memory(row),
        share=_share(row),
        host_cpus=row.whole("host_cpus", low=1) if row.text("host_cpus") else None,
        expected_seconds=row.number("expected_seconds") if row.text("expected_seconds") else None,
    )


def _memory(row: TraceRow) -> int | None:
    if not row.text("memory"):
        return None
    try:
        return parse_size(row.text("memory"), "memory") or None
    except InvalidValue as error:
        raise row.error("memory", error.expected) from None


def _share(row: TraceRow) -> float | None:
    if not row.text("share"):
        return None
    share = row.number("share")
    if not 0 < share <= 1:
        raise row.error("share", "above 0 and at most 1")
    return share
