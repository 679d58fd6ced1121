"""Gavel's tables as its repository has them: measured speeds of jobs, and traces of jobs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = "https://github.com/stanford-futuredata/gavel"
THROUGHPUTS = "physical_cluster_throughputs.json"
TRACE = "minimize_makespan.trace"
ALONE = "null"

# Of a line of a trace, in this order.
COLUMNS = (
    "job type",
    "command",
    "working directory",
    "argument of steps",
    "needs data",
    "total steps",
    "scale factor",
    "priority",
    "SLO",
    "arrival",
)

Table = dict[tuple[str, str], float]
"""Steps per second by (job type and gang, GPU); 0 where it does not fit."""


@dataclass(frozen=True)
class GavelJob:
    """A job of a trace: its row of the table, its steps, and the GPUs that it takes at once."""

    kind: str
    steps: float
    gang: int


def read_table(path: Path, gpus: tuple[str, ...]) -> Table:
    """What each job does alone on each of these GPUs; a cell that is not there is left out.

    Exits with the file and the name of a GPU that has no column.
    """
    columns = json.loads(path.read_text(encoding="utf-8"))
    for gpu in gpus:
        if gpu not in columns:
            sys.exit(f"{path}: there is no column {gpu!r} (it has {', '.join(columns)})")
    return {
        (kind, gpu): float(entries[ALONE])
        for gpu in gpus
        for kind, entries in columns[gpu].items()
        if ALONE in entries
    }


def read_trace(path: Path) -> list[GavelJob]:
    """The jobs of a trace; exits with the line and the column where one is missing or no number."""
    jobs: list[GavelJob] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < len(COLUMNS):
            sys.exit(f"{path}:{number}: there is no column {COLUMNS[len(fields)]!r}")
        try:
            steps, gang = float(fields[5]), int(fields[6])
        except ValueError:
            sys.exit(f"{path}:{number}: {COLUMNS[5]!r} and {COLUMNS[6]!r} must be numbers")
        jobs.append(GavelJob(f"('{fields[0]}', {gang})", steps, gang))
    return jobs
