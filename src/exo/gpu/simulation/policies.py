"""The published placement policies, to compare with: they decide over the table of machines.

Each follows the description in "Beware of Fragmentation" (FGD, USENIX ATC 2023) and the simulator
published with it, whose figures ``benchmarks/bench_openb.py`` checks them against. Scores are whole
numbers, as there: among equal ones the first machine of the table wins.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from exo.gpu.scheduling.fragmentation import Fragmentation
from exo.gpu.scheduling.machines import WHOLE_MILLI, Demand, Floats, Integers, States, class_of
from exo.gpu.scheduling.node_table import IMPOSSIBLE, NodePolicy, NodeTable, Scoreboard
from exo.gpu.scheduling.request_mix import UnusableGpu, best_places, gains, typical
from exo.gpu.vocabulary.errors import UnknownName

# What the published scores divide by: the cores and GPUs of the largest machine.
MOST_CPU_MILLI = 128_000
MOST_GPU_MILLI = 8_000


class _Published:
    """A policy that learns nothing."""

    name = ""
    version = 0

    def arrived(self, demand: Demand) -> None:
        """Do nothing: it does not look back."""


class _Anywhere(_Published):
    """All machines are alike."""

    name = "random"

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """The same for all."""
        del states, demand
        return np.zeros(len(numbers)), None


class BestFit(_Published):
    """The machine on which the least is left of cores and GPUs."""

    name = "best-fit"

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """100 less half of each part that is left."""
        cpu = (states.cpu_milli[numbers] - demand.cpu_milli) / MOST_CPU_MILLI
        gpu = (states.gpu[numbers].sum(axis=1) - demand.total_gpu_milli) / MOST_GPU_MILLI
        return np.trunc(100 * (1 - 0.5 * (cpu + gpu))), None


class DotProduct(_Published):
    """The machine whose free amounts are least aligned with the demand."""

    name = "dot-product"

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """100 less half of the product of what is free and what is asked for."""
        cpu = states.cpu_milli[numbers] * demand.cpu_milli / MOST_CPU_MILLI**2
        gpu = states.gpu[numbers].sum(axis=1) * demand.total_gpu_milli / MOST_GPU_MILLI**2
        return np.trunc(100 * (1 - 0.5 * (cpu + gpu))), None


class GpuClustering(_Published):
    """The machine that holds demands of the same class, and few others."""

    name = "gpu-clustering"

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """Up to 25 for GPUs that are taken, and up to 75 for the company."""
        if not demand.gpus:
            return np.zeros(len(numbers)), None
        held, own = states.held[numbers], 1 << class_of(demand)
        company = np.select([held == own, (held & own) > 0, held == 0], [75, 50, 25], 0)
        free = states.gpu[numbers].sum(axis=1)
        return np.trunc(25 * (MOST_GPU_MILLI - free) / MOST_GPU_MILLI + company), None


class GpuPacking(_Published):
    """GPUs in use before free ones, machines in use before idle ones."""

    name = "gpu-packing"

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """50 and more on GPUs in use, 33 and more beside GPUs in use, less on an idle machine."""
        if not demand.gpus:
            return np.zeros(len(numbers)), None
        gpu = states.gpu[numbers]
        free = (gpu == WHOLE_MILLI).sum(axis=1)
        idle = free == states.gpus[numbers]
        fitting = np.where((gpu >= demand.gpu_milli) & (gpu < WHOLE_MILLI), gpu, 2 * WHOLE_MILLI)
        shared = (
            fitting.min(axis=1) < WHOLE_MILLI if demand.is_share else np.zeros(len(gpu), np.bool_)
        )
        part = np.maximum(100 - fitting.min(axis=1) / 10 / 10, 50)
        count = free if demand.is_share else np.full(len(gpu), demand.gpus)
        return np.trunc(
            np.select(
                [idle, shared], [np.maximum(33 - free, free), part], np.maximum(50 - count, 33)
            )
        ), None


class FragmentationGradient(_Published):
    """FGD: where the GPU that typical demands cannot use grows least.

    It is told beforehand what will be asked for.
    """

    name = "fgd"

    def __init__(self, demands: Iterable[Demand]) -> None:
        self._mix = typical(Counter(demand.shape for demand in demands))
        self._unusable: UnusableGpu | None = None
        self._states: States | None = None

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """The sigmoid of the decrease, in thousandths of a GPU over 1000, times 100."""
        if self._states is not states or self._unusable is None:
            self._states, self._unusable = states, UnusableGpu(self._mix, states)
        unusable = self._unusable
        gained, places = gains(
            states, numbers, demand, lambda cpu, gpu, model: -unusable(cpu, gpu, model)
        )
        scores = np.trunc(100 / (1 + np.exp(-gained / WHOLE_MILLI)))
        return best_places(np.where(np.isneginf(gained), IMPOSSIBLE, scores), places)


Choice = tuple[int, tuple[int, ...]]
"""A row of the table, and the GPUs there."""


class Chooser(Protocol):
    """Who decides: a policy at work on one table."""

    def arrived(self, demand: Demand) -> None:
        """Look at a demand, before it is decided on."""
        ...

    def choose(self, demand: Demand) -> Choice | None:
        """Where it goes; None where it fits nowhere."""
        ...


class ByScore:
    """Takes the machine with the highest score."""

    def __init__(self, table: NodeTable, policy: NodePolicy) -> None:
        self._board = Scoreboard(table, policy)
        self._policy = policy

    def arrived(self, demand: Demand) -> None:
        """Hand it on to the policy."""
        self._policy.arrived(demand)

    def choose(self, demand: Demand) -> Choice | None:
        """The best by the policy."""
        return self._board.best(demand)


class RandomFit:
    """Takes any machine, and on it any GPU, on which the demand fits."""

    def __init__(self, table: NodeTable, chance: random.Random) -> None:
        self._board = Scoreboard(table, _Anywhere())
        self._table = table
        self._chance = chance

    def arrived(self, demand: Demand) -> None:
        """Do nothing: it does not look back."""

    def choose(self, demand: Demand) -> Choice | None:
        """One of those that will do, each with the same chance."""
        rows = np.flatnonzero(self._board.scores(demand) > IMPOSSIBLE)
        if not len(rows):
            return None
        row = int(rows[self._chance.randrange(len(rows))])
        if not demand.is_share:
            return row, self._table.devices_for(row, demand)
        free = self._table.free[row]
        fitting = [index for index, left in enumerate(free) if left >= demand.gpu_milli]
        return row, (self._chance.choice(fitting),)


Maker = Callable[[NodeTable, Sequence[Demand], random.Random], Chooser]


class ChooserKind(msgspec.Struct, frozen=True):
    """How a policy is set to work: on a table, told all demands beforehand, with lots to draw.

    Only the published FGD looks at the demands beforehand.
    """

    make: Maker
    keeps_classes: bool = False


CHOOSERS: dict[str, ChooserKind] = {
    "random": ChooserKind(lambda table, _, chance: RandomFit(table, chance)),
    DotProduct.name: ChooserKind(lambda table, _, __: ByScore(table, DotProduct())),
    GpuClustering.name: ChooserKind(
        lambda table, _, __: ByScore(table, GpuClustering()), keeps_classes=True
    ),
    GpuPacking.name: ChooserKind(lambda table, _, __: ByScore(table, GpuPacking())),
    BestFit.name: ChooserKind(lambda table, _, __: ByScore(table, BestFit())),
    FragmentationGradient.name: ChooserKind(
        lambda table, demands, _: ByScore(table, FragmentationGradient(demands))
    ),
    Fragmentation.name: ChooserKind(lambda table, _, __: ByScore(table, Fragmentation())),
}
"""The policies that place demands on machines, by name: the six published ones, and ours."""


def chooser_named(name: str) -> ChooserKind:
    """The policy of that name.

    Raises:
        UnknownName: with all that are known, and the near spelling.

    """
    found = CHOOSERS.get(name)
    if found is None:
        raise UnknownName("policy", name, CHOOSERS)
    return found
