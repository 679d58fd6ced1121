"""The openb trace of Alibaba (cluster-trace-gpu-v2023): machines, and pods that ask for parts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from exo.gpu.scheduling.machines import WHOLE_MILLI, Demand, Machine
from exo.gpu.simulation.traces.columns import TraceRow, read_table
from exo.gpu.vocabulary.errors import TraceError

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")

MIB = 2**20


class Pod(msgspec.Struct, frozen=True):
    """A demand with the name under which the trace has it."""

    name: str
    demand: Demand


def read_nodes(path: Path) -> tuple[Machine, ...]:
    """The machines of a node list, in its order.

    Raises:
        TraceError: naming file, line and column.

    """
    machines = tuple(
        Machine(
            name=_name(row, "sn"),
            cpu_milli=row.whole("cpu_milli"),
            memory_bytes=row.whole("memory_mib") * MIB,
            gpus=row.whole("gpu"),
            model=row.text("model"),
        )
        for row in read_table(path, NODE_COLUMNS)
    )
    if not machines:
        raise TraceError(f"{path}: there is no machine in it")
    return machines


def read_pods(path: Path) -> tuple[Pod, ...]:
    """The pods of a pod list, in its order; the times in it are not read.

    A list without a column ``gpu_spec`` asks for no model. Others separate the models that will do
    by ``|``.

    Raises:
        TraceError: naming file, line and column.

    """
    return tuple(_pod(row) for row in read_table(path, POD_COLUMNS))


def _pod(row: TraceRow) -> Pod:
    gpus = row.whole("num_gpu")
    gpu_milli = row.whole("gpu_milli", high=WHOLE_MILLI)
    if bool(gpus) != bool(gpu_milli):
        raise row.error("gpu_milli", f"an amount for {gpus} GPUs")
    demand = Demand(
        cpu_milli=row.whole("cpu_milli"),
        memory_bytes=row.whole("memory_mib") * MIB,
        gpus=gpus,
        gpu_milli=gpu_milli,
        models=tuple(name for name in row.text("gpu_spec").split("|") if name),
    )
    return Pod(_name(row, "name"), demand)


def _name(row: TraceRow, column: str) -> str:
    name = row.text(column)
    if not name:
        raise row.error(column, "a name")
    return name
