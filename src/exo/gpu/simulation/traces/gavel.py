"""Gavel's jobs and the measured speeds of each kind of job on each kind of GPU."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from exo.gpu.simulation.jobs import Job
from exo.gpu.vocabulary.errors import TraceError

COLUMNS: tuple[str, ...] = (
    "job type",
    "command",
    "working directory",
    "step argument",
    "needs data",
    "total steps",
    "scale factor",
    "priority",
    "objective",
    "arrival",
)

Speeds = Mapping[str, Mapping[tuple[str, int], float]]
"""GPU -> (kind of job, how many GPUs) -> steps a second alone; 0 where it does not fit."""


def read_speeds(path: Path) -> Speeds:
    """The speeds of jobs that have their GPUs to themselves.

    Raises:
        TraceError: naming the file and the entry.

    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    if not isinstance(tables, dict):
        raise TraceError(f"{path}: it is no table of GPUs")
    return {
        gpu: {
            _kind(path, gpu, key): _alone(path, gpu, key, entry)
            for key, entry in _entries(path, gpu, table)
        }
        for gpu, table in cast("dict[str, Any]", tables).items()
    }


def read_jobs(path: Path, speeds: Speeds, *, reference: str) -> tuple[Job, ...]:
    """The jobs of a trace, with their run times on each kind of GPU on which they fit.

    ``run_seconds`` is that of the reference, or of the fastest where it does not fit there.

    Raises:
        TraceError: naming file, line and column.

    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}") from error
    return tuple(
        _job(path, number, line, speeds, reference)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def _job(path: Path, number: int, line: str, speeds: Speeds, reference: str) -> Job:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        column = COLUMNS[min(len(cells), len(COLUMNS) - 1)]
        count = f"{len(cells)} cells for {len(COLUMNS)} columns"
        raise TraceError(f"{path}, line {number}, column {column}: {count}")
    row = dict(zip(COLUMNS, cells, strict=True))

    def figure(column: str, low: float) -> float:
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low:
            where = f"{path}, line {number}, column {column}"
            raise TraceError(f"{where}: {row[column]!r} is not a number of {low:g} or more")
        return value

    steps, gpus = figure("total steps", 1), int(figure("scale factor", 1))
    kind = (row["job type"], gpus)
    seconds = {
        gpu: steps / table[kind] for gpu, table in speeds.items() if table.get(kind, 0.0) > 0
    }
    if not seconds:
        where = f"{path}, line {number}, column job type"
        raise TraceError(f"{where}: no speed is known of {kind[0]!r} on {gpus} GPUs")
    return Job(
        name=f"line {number}",
        arrived_seconds=figure("arrival", 0),
        run_seconds=seconds.get(reference, min(seconds.values())),
        gpus=gpus,
        group=row["job type"],
        seconds_by_model=seconds,
    )


def _entries(path: Path, gpu: str, table: object) -> list[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise TraceError(f"{path}: {gpu!r} has no table of jobs")
    return list(cast("dict[str, Any]", table).items())


def _kind(path: Path, gpu: str, key: str) -> tuple[str, int]:
    try:
        name, gpus = ast.literal_eval(key)
    except (ValueError, SyntaxError, TypeError):
        raise TraceError(f"{path}: {gpu!r} has no kind of job {key!r}") from None
    return str(name), int(gpus)


def _alone(path: Path, gpu: str, key: str, entry: object) -> float:
    alone: object = cast("dict[str, Any]", entry).get("null") if isinstance(entry, dict) else None
    if not isinstance(alone, int | float) or not math.isfinite(alone) or alone < 0:
        raise TraceError(f"{path}: {gpu!r}, {key}: {alone!r} is no speed")
    return float(alone)
