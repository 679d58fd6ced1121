"""Machines that fill up: demands that only arrive, placed one by one by a policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from exo.gpu.scheduling.machines import WHOLE_MILLI, Demand, Machine
from exo.gpu.scheduling.node_table import NodeTable
from exo.gpu.scheduling.request_mix import UnusableGpu, typical
from exo.gpu.simulation.policies import chooser_named
from exo.gpu.simulation.traces.openb import Pod

# The published study fills the cluster with up to 1.3 times what it has.
INFLATION = 1.3

Placement = tuple[str, str | None, tuple[int, ...]]
"""Name of the demand, name of the machine or None for one that was dropped, its GPUs."""


class PlacementRun(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each demand, in order of arrival; GPU in thousandths."""

    policy: str
    seed: int
    capacity_milli: int
    placements: tuple[Placement, ...]
    arrived_milli: tuple[int, ...]
    """Up to and with each."""
    allocated_milli: tuple[int, ...]
    unusable_milli: float
    """At the end: how much of what is free a typical demand cannot use, on average."""

    @property
    def dropped(self) -> int:
        """How many fitted nowhere."""
        return sum(machine is None for _, machine, _ in self.placements)

    def allocation_percent(self, arrived_percent: int) -> float | None:
        """Of all GPU, the mean over the moments at which so much had arrived, to whole percent.

        None where the run has no such moment.
        """
        at = [
            allocated
            for arrived, allocated in zip(self.arrived_milli, self.allocated_milli, strict=True)
            if round(100 * arrived / self.capacity_milli) == arrived_percent
        ]
        return 100 * sum(at) / len(at) / self.capacity_milli if at else None


def gpu_milli_of(machines: Sequence[Machine]) -> int:
    """All GPU of these machines, in thousandths."""
    return WHOLE_MILLI * sum(machine.gpus for machine in machines)


def arrivals(
    pods: Sequence[Pod], capacity_milli: int, seed: int, inflation: float = INFLATION
) -> tuple[Pod, ...]:
    """The pods in random order, and random ones of them again until the cluster is overfull.

    As in the published study: sorted by name and shuffled; then drawn with replacement until the
    next would exceed the inflation, where what one of its GPUs takes is what is tested; random ones
    are left out of a list that exceeds it from the start.
    """
    order, draws = (random.Random(f"openb {what} {seed}") for what in ("order", "draws"))
    arriving = sorted(pods, key=lambda pod: pod.name)
    order.shuffle(arriving)
    limit = inflation * capacity_milli
    total = sum(pod.demand.total_gpu_milli for pod in arriving)
    while total > limit:
        total -= arriving.pop(draws.randrange(len(arriving))).demand.total_gpu_milli
    while any(pod.demand.gpus for pod in pods):
        pod = pods[draws.randrange(len(pods))]
        if total + pod.demand.gpu_milli > limit:
            break
        total += pod.demand.total_gpu_milli
        arriving.append(pod)
    return tuple(arriving)


def place_all(
    machines: Sequence[Machine],
    arriving: Sequence[Pod],
    policy: str,
    seed: int,
    *,
    workload: Sequence[Pod] | None = None,
) -> PlacementRun:
    """Offer each pod to the policy in turn; one that fits nowhere is dropped.

    The order of the machines, which decides between equal scores, is drawn from the seed.
    ``workload`` is the list that the arrivals were drawn from, by default they themselves: what is
    typical goes by it, which the published FGD knows beforehand.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """
    shuffled = list(machines)
    random.Random(f"openb machines {seed}").shuffle(shuffled)
    made = chooser_named(policy)
    table = NodeTable(shuffled, keep_classes=made.keeps_classes)
    typical_of = [pod.demand for pod in (arriving if workload is None else workload)]
    chooser = made.make(table, typical_of, random.Random(f"openb choice {seed}"))
    placements: list[Placement] = []
    arrived_milli: list[int] = []
    allocated_milli: list[int] = []
    arrived = allocated = 0
    for pod in arriving:
        demand = pod.demand
        chooser.arrived(demand)
        choice = chooser.choose(demand)
        arrived += demand.total_gpu_milli
        if choice is None:
            placements.append((pod.name, None, ()))
        else:
            row, devices = choice
            table.take(row, demand, devices)
            allocated += demand.total_gpu_milli
            placements.append((pod.name, shuffled[row].name, devices))
        arrived_milli.append(arrived)
        allocated_milli.append(allocated)
    return PlacementRun(
        policy=policy,
        seed=seed,
        capacity_milli=gpu_milli_of(machines),
        placements=tuple(placements),
        arrived_milli=tuple(arrived_milli),
        allocated_milli=tuple(allocated_milli),
        unusable_milli=_unusable_milli(table, typical_of),
    )


def _unusable_milli(table: NodeTable, demands: Sequence[Demand]) -> float:
    mix = typical(Counter(demand.shape for demand in demands))
    states, now = table.states, table.state
    unusable = UnusableGpu(mix, states)
    return float(np.sum(unusable(states.cpu_milli[now], states.gpu[now], states.model[now])))
