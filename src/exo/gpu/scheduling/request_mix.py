"""What is usually asked for, and what of a machine's GPUs is of no use to it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from exo.gpu.scheduling.machines import WHOLE_MILLI, Demand, Floats, Integers, States

# Rare kinds of demand cost time and change nothing: FGD (USENIX ATC 2023) drops the same.
TYPICAL_PART = 0.95

Value = Callable[[Integers, Integers, Integers], Floats]
"""What contents are worth, from their free cores, free GPUs and models."""


class RequestMix(msgspec.Struct, frozen=True):
    """Kinds of demand, each with its part of all; the parts add up to 1."""

    demands: tuple[Demand, ...] = ()
    parts: tuple[float, ...] = ()


def typical(counts: Mapping[Demand, int], part: float = TYPICAL_PART) -> RequestMix:
    """The most frequent shapes that together make up that part of all, the most frequent first.

    Equally frequent ones stand in the order of the mapping.
    """
    total = sum(counts.values())
    chosen: dict[Demand, int] = {}
    so_far = 0
    for demand, count in sorted(counts.items(), key=lambda item: -item[1]):
        if so_far >= part * total:
            break
        chosen[demand] = count
        so_far += count
    return RequestMix(tuple(chosen), tuple(count / so_far for count in chosen.values()))


class UnusableGpu:
    """How much of the free GPU a demand drawn from a mix cannot use, in thousandths.

    For each kind that is all of it where the kind takes no GPU or does not fit, else what is left
    on GPUs with less than it needs of each. This is the fragmentation measure of FGD.
    Kinds that take one GPU or none count by ``single_weight``, those of several by ``gang_weight``.
    """

    def __init__(
        self,
        mix: RequestMix,
        states: States,
        *,
        single_weight: float = 1.0,
        gang_weight: float = 1.0,
    ) -> None:
        self._mix = mix
        self._states = states
        self._steps = np.array(sorted({one.cpu_milli for one in mix.demands}), np.int64)
        self._single = single_weight * self._table()
        self._gangs = self._gang_parts(gang_weight)

    def __call__(self, cpu: Integers, gpu: Integers, model: Integers) -> Floats:
        """For each content: free cores, ascending free GPUs in thousandths, number of the model."""
        level = np.searchsorted(self._steps, cpu, side="right")
        lost = self._single[model[:, None], level[:, None], gpu].sum(axis=1)
        for (gpus, gpu_milli), parts in self._gangs.items():
            fitting = gpu >= gpu_milli
            usable = np.where(fitting.sum(axis=1) >= gpus, (gpu * fitting).sum(axis=1), 0)
            lost += gpu.sum(axis=1) * parts[0, 0, 1] - usable * parts[model, level, 0]
        return lost

    def _table(self) -> Floats:
        """What demands of one GPU or none cannot use of one: by model, level of cores, and rest."""
        rest = np.arange(WHOLE_MILLI + 1)
        shape = (len(self._states.models), len(self._steps) + 1, len(rest))
        table = np.zeros(shape)
        for demand, part in zip(self._mix.demands, self._mix.parts, strict=True):
            if demand.gpus > 1:
                continue
            table += part * rest
            if demand.gpus:
                level = int(np.searchsorted(self._steps, demand.cpu_milli, side="right"))
                usable = np.where(rest < demand.gpu_milli, 0, rest)
                table[self._allowed(demand), level:] -= part * usable
        return table

    def _gang_parts(self, weight: float) -> dict[tuple[int, int], Floats]:
        """For demands of several GPUs, by how many and what of each: two parts of all demands.

        The first finds enough cores and its model, by model and level of cores; the second is all.
        """
        found: dict[tuple[int, int], Floats] = {}
        shape = (len(self._states.models), len(self._steps) + 1, 2)
        for demand, part in zip(self._mix.demands, self._mix.parts, strict=True):
            if demand.gpus > 1:
                parts = found.setdefault((demand.gpus, demand.gpu_milli), np.zeros(shape))
                level = int(np.searchsorted(self._steps, demand.cpu_milli, side="right"))
                parts[self._allowed(demand), level:, 0] += weight * part
                parts[..., 1] += weight * part
        return found

    def _allowed(self, demand: Demand) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self._states.allowed(demand.models or self._states.models)


@functools.lru_cache(maxsize=64)  # a line of waiters asks about one mix over and over
def expected_fill(mix: RequestMix) -> Floats:
    """How much of a GPU is taken in the end, in thousandths, by what is free on it.

    Demands of one GPU are drawn from the mix and put there for as long as one of them fits.
    """
    parts: dict[int, float] = {}
    for demand, part in zip(mix.demands, mix.parts, strict=True):
        if demand.gpus == 1:
            parts[demand.gpu_milli] = parts.get(demand.gpu_milli, 0.0) + part
    amounts = np.array(sorted(parts), np.int64)
    weights = np.array([parts[int(amount)] for amount in amounts])
    so_far = np.cumsum(weights)
    fill = np.zeros(WHOLE_MILLI + 1)
    for free in range(WHOLE_MILLI + 1):
        count = int(np.searchsorted(amounts, free, side="right"))
        if count:
            then = amounts[:count] + fill[free - amounts[:count]]
            fill[free] = then @ weights[:count] / so_far[count - 1]
    fill.setflags(write=False)  # the next who asks gets the same
    return fill


def gains(
    states: States, numbers: Integers, demand: Demand, value: Value
) -> tuple[Floats, Integers | None]:
    """What a demand adds to the value of contents on which it fits, by every way to place it.

    For a part of a GPU a row for each content and a column for each place in its ascending order,
    minus infinity where it does not fit or the place before is the same; else a column alone.
    """
    cpu, gpu, model = states.cpu_milli[numbers], states.gpu[numbers], states.model[numbers]
    before, cpu_after = value(cpu, gpu, model), cpu - demand.cpu_milli
    if not demand.is_share:
        after = gpu.copy()
        fitting = after >= max(demand.gpu_milli, 1)
        # The smallest that will do, so that whole machines stay whole where rests will do.
        after[fitting & (np.cumsum(fitting, axis=1) <= demand.gpus)] -= demand.gpu_milli
        return (value(cpu_after, after, model) - before)[:, None], None
    fits = gpu >= demand.gpu_milli
    fits[:, 1:] &= gpu[:, 1:] != gpu[:, :-1]
    rows, places = np.nonzero(fits)
    after = gpu[rows]
    after[np.arange(len(rows)), places] -= demand.gpu_milli
    gained = np.full(gpu.shape, -np.inf)
    gained[rows, places] = value(cpu_after[rows], after, model[rows]) - before[rows]
    return gained, np.arange(states.width)


def best_places(scores: Floats, places: Integers | None) -> tuple[Floats, Integers | None]:
    """The best way of each row of :func:`gains`; of equal ones the one that leaves the least."""
    if places is None:
        return scores[:, 0], None
    best = scores.argmax(axis=1)
    return scores[np.arange(len(scores)), best], best
