"""Jobs of Microsoft's Philly clusters: when each came, how long it ran, on how many GPUs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.traces.columns import read_table

COLUMNS = ("timestamp", "duration", "num_gpus", "cluster")


def read_philly(path: Path) -> tuple[Job, ...]:
    """The jobs in order of arrival, which is counted from the first; equal times keep their order.

    Raises:
        TraceError: naming file, line and column.

    """
    found: list[tuple[float, Job]] = []
    for row in read_table(path, COLUMNS):
        try:
            moment = datetime.fromisoformat(row.text("timestamp")).replace(tzinfo=UTC)
        except ValueError:
            raise row.error("timestamp", 'a time such as "2017-10-09 07:01:55"') from None
        job = Job(
            name=f"line {row.line}",
            arrived_seconds=0.0,
            run_seconds=row.number("duration"),
            gpus=row.whole("num_gpus", low=1),
            group=row.text("cluster"),
        )
        found.append((moment.timestamp(), job))
    found.sort(key=lambda one: one[0])
    first = found[0][0] if found else 0.0
    return tuple(job.at(arrived - first) for arrived, job in found)
