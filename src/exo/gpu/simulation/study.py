"""What is compared: a cluster and a workload, and which of three ways of simulating fits them."""

from __future__ import annotations

import csv
from enum import StrEnum
from pathlib import Path

import msgspec

from exo.gpu.scheduling.machines import Machine
from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.traces.clusters import read_cluster
from exo.gpu.simulation.traces.gavel import read_jobs, read_speeds
from exo.gpu.simulation.traces.journal import read_journal
from exo.gpu.simulation.traces.openb import Pod, read_nodes, read_pods
from exo.gpu.simulation.traces.philly import read_philly
from exo.gpu.simulation.traces.plain import read_plain
from exo.gpu.simulation.weather import Weather
from exo.gpu.vocabulary.errors import TraceError
from exo.gpu.vocabulary.snapshot import DeviceState


class Kind(StrEnum):
    """How a study is simulated."""

    PLACEMENT = "placement"
    """Machines that fill up: policies over the table of machines."""
    COUNT = "count"
    """Devices all alike: disciplines of the line by count."""
    DEVICES = "devices"
    """Each device by itself: the line, the selector and the ledger as they run live."""


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster and a workload; what does not belong to its kind is empty."""

    kind: Kind
    machines: tuple[Machine, ...] = ()
    pods: tuple[Pod, ...] = ()
    inflation: float | None = None
    """How much of the cluster's GPU arrives; None: as in the published study."""
    count: int = 0
    devices: tuple[DeviceState, ...] = ()
    jobs: tuple[Job, ...] = ()
    weather: Weather = Weather()


def read_study(
    cluster: str, trace: Path, *, speeds: Path | None = None, weather: Weather | None = None
) -> Study:
    """Read both; the forms are told apart by what is in the files. A folder has journals in it.

    ``cluster`` is a number of GPUs that are alike, a table of openb machines, or a script of
    devices. ``speeds`` is Gavel's table, for Gavel's jobs.

    Raises:
        TraceError: naming file, line and column, or saying that the two do not go together.

    """
    weather = weather or Weather()
    pods = not trace.is_dir() and _header(trace) >= {"num_gpu", "gpu_milli"}
    if cluster.isdecimal() and int(cluster) > 0:
        if pods:
            raise TraceError(f"{trace}: its pods need a table of machines, not {cluster} GPUs")
        return Study(
            kind=Kind.COUNT, count=int(cluster), jobs=_jobs(trace, speeds), weather=weather
        )
    path = Path(cluster)
    if pods:
        machines = read_nodes(path)
        return Study(kind=Kind.PLACEMENT, machines=machines, pods=read_pods(trace))
    return Study(
        kind=Kind.DEVICES, devices=read_cluster(path), jobs=_jobs(trace, speeds), weather=weather
    )


def _jobs(trace: Path, speeds: Path | None) -> tuple[Job, ...]:
    if speeds is not None:
        known = read_speeds(speeds)
        return read_jobs(trace, known, reference=next(iter(known), ""))
    if trace.is_dir():
        return read_journal(trace)
    header = _header(trace)
    if "timestamp" in header:
        return read_philly(trace)
    if "arrived_seconds" in header or not header:
        return read_plain(trace)
    return read_journal(trace)


def _header(trace: Path) -> set[str]:
    """The first line as names of columns."""
    try:
        with trace.open(encoding="utf-8", errors="replace", newline="") as file:
            return set(next(csv.reader(file), list[str]()))
    except (OSError, csv.Error) as error:
        raise TraceError(f"{trace} cannot be read: {error}") from error
