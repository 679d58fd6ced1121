"""The published placement policies, to compare with: they decide over the table of machines.

Each follows the description in "Beware of Fragmentation" (FGD, USENIX ATC 2023) and the simulator
published with it, whose figures ``benchmarks/bench_openb.py`` checks them against. Scores are whole
numbers, as there: among equal ones the first machine of the table wins.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from exo.gpu.scheduling.node_table import (
    WHOLE_MILLI,
    Demand,
    Floats,
    Integers,
    NodeTable,
    Scoreboard,
    States,
    class_of,
)

# What the published scores divide by: the cores and GPUs of the largest machine.
MOST_CPU_MILLI = 128_000
MOST_GPU_MILLI = 8_000

# The part of all pods that the typical ones stand for.
TYPICAL_PART = 0.95


class _Published:
    """A policy that learns nothing."""

    name = ""
    version = 0
    keeps_classes = False

    def arrived(self, demand: Demand) -> None:
        """Do nothing: it does not look back."""


class RandomFit(_Published):
    """Any machine, and on it any GPU, on which the demand fits."""

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
    keeps_classes = True

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


class Typical(msgspec.Struct, frozen=True):
    """Kinds of demand, each with the part of all that it is."""

    demands: tuple[Demand, ...]
    parts: tuple[float, ...]


def typical(demands: Iterable[Demand], part: float = TYPICAL_PART) -> Typical:
    """The most frequent shapes that together make up that part of all, by decreasing count."""
    counts = Counter(demand.shape for demand in demands)
    total = sum(counts.values())
    chosen: list[tuple[Demand, int]] = []
    so_far = 0
    for demand, count in counts.most_common():
        if so_far >= part * total:
            break
        chosen.append((demand, count))
        so_far += count
    return Typical(
        tuple(demand for demand, _ in chosen), tuple(count / so_far for _, count in chosen)
    )


class FragmentationGradient(_Published):
    """FGD: where the GPU that typical demands cannot use grows least.

    It is told the typical demands beforehand, from the whole list.
    """

    name = "fgd"

    def __init__(self, known: Typical) -> None:
        self._known = known
        self._steps = np.array(sorted({one.cpu_milli for one in known.demands}), np.int64)
        self._single: dict[int, Floats] = {}

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """The sigmoid of the decrease, in thousandths of a GPU over 1000, times 100."""
        cpu, gpu, model = states.cpu_milli[numbers], states.gpu[numbers], states.model[numbers]
        before = self.unusable(states, cpu, gpu, model)
        after_cpu = cpu - demand.cpu_milli
        if not demand.is_share:
            gpu = gpu.copy()
            if demand.gpus:
                fitting = np.cumsum(gpu >= demand.gpu_milli, axis=1)
                taken = (gpu >= demand.gpu_milli) & (fitting <= demand.gpus)
                gpu[taken] -= demand.gpu_milli
            return self._scored(before - self.unusable(states, after_cpu, gpu, model)), None
        best = np.full(len(numbers), -1.0)
        places = np.full(len(numbers), -1)
        for place in range(states.width):
            fits = gpu[:, place] >= demand.gpu_milli
            if place + 1 < states.width:
                fits &= gpu[:, place] != gpu[:, place + 1]
            if not fits.any():
                continue
            left = gpu[fits].copy()
            left[:, place] -= demand.gpu_milli
            scores = self._scored(
                before[fits] - self.unusable(states, after_cpu[fits], left, model[fits])
            )
            rows = np.flatnonzero(fits)
            better = scores > best[rows]
            best[rows[better]], places[rows[better]] = scores[better], place
        return best, places

    def unusable(self, states: States, cpu: Integers, gpu: Integers, model: Integers) -> Floats:
        """The GPU that the typical demands cannot use, in thousandths, by their frequency."""
        total = gpu.sum(axis=1)
        level = np.searchsorted(self._steps, cpu, side="right")
        table = self._tables(states)
        lost = table[model[:, None], level[:, None], gpu].sum(axis=1)
        for demand, part in zip(self._known.demands, self._known.parts, strict=True):
            if demand.gpus < 2:
                continue
            usable = (cpu >= demand.cpu_milli) & (gpu[:, -demand.gpus] >= demand.gpu_milli)
            if demand.models:
                usable &= states.allowed(demand.models)[model]
            rest = np.where(gpu < demand.gpu_milli, gpu, 0).sum(axis=1)
            lost += part * np.where(usable, rest, total)
        return lost

    def _tables(self, states: States) -> Floats:
        """By model, level of cores and free thousandths: what one GPU has that cannot be used."""
        found = self._single.get(id(states))
        if found is not None:
            return found
        free = np.arange(WHOLE_MILLI + 1)
        table = np.zeros((len(states.models), len(self._steps) + 1, WHOLE_MILLI + 1))
        for demand, part in zip(self._known.demands, self._known.parts, strict=True):
            if demand.gpus > 1:
                continue
            lost = np.broadcast_to(part * free, table.shape).copy()
            if demand.gpus:
                level = int(np.searchsorted(self._steps, demand.cpu_milli, side="right"))
                models = (
                    states.allowed(demand.models)
                    if demand.models
                    else np.ones(len(states.models), np.bool_)
                )
                usable = np.where(free < demand.gpu_milli, part * free, 0.0)
                lost[models, level:] = usable
            table += lost
        self._single = {id(states): table}
        return table

    @staticmethod
    def _scored(gain_milli: Floats) -> Floats:
        return np.trunc(100 / (1 + np.exp(-gain_milli / WHOLE_MILLI)))
