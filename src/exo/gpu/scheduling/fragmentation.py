"""The policy ``fragmentation``: where the least is lost of what will be asked for next.

It learns what is asked for from what was asked for. Why it is made so: docs/design/fragmentation.md
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from exo.gpu.scheduling.machines import Demand, Floats, Integers, States
from exo.gpu.scheduling.request_mix import (
    RequestMix,
    UnusableGpu,
    Value,
    best_places,
    expected_fill,
    gains,
    typical,
)

# Losses are counted in steps of a twenty-fifth of a GPU. Within a step the first machine wins:
# what comes goes onto few machines, and the others stay whole for what needs them whole.
STEP_MILLI = 40.0

# What a demand for one GPU cannot use now weighs a third of what will never be filled: it may
# still come of use to others. For demands of several it weighs twice that: GPUs of one machine
# hardly ever come free together again.
SINGLE_WEIGHT, GANG_WEIGHT = 0.3, 0.6

# Of the normal distribution's standard deviation, for the logistic one that stands for it, halved:
# machines are filled by choice, not by lot, so that their needs of cores differ less.
SPREAD = 0.5 * np.sqrt(3) / np.pi

# Cores are spared for GPUs while the demands ask for no more of them than there are. Where they ask
# for half as much again, all cores will be taken whatever is spared, and nothing is.
VAIN_EXCESS = 0.5


class CoreShortage:
    """How much GPU is expected to be left over for want of cores, in thousandths.

    The cores that filling a machine's GPUs will take are a random amount: the mean by the mix,
    with the spread of a sum of independent demands. What they exceed the free cores by is lost.
    """

    def __init__(self, mix: RequestMix) -> None:
        kinds = [
            (demand.cpu_milli, demand.total_gpu_milli, part)
            for demand, part in zip(mix.demands, mix.parts, strict=True)
            if demand.gpus
        ]
        cpu, gpu, part = np.array(kinds or [(0, 1, 1.0)], np.float64).T
        mean_gpu = float((gpu * part).sum())
        self.cores_per_gpu = float((cpu * part).sum()) / mean_gpu
        """Cores for a GPU on average."""
        rest = part * (cpu - self.cores_per_gpu * gpu) ** 2
        self._deviation = float(np.sqrt(rest.sum() / mean_gpu))

    def __call__(self, cpu: Integers, gpu: Integers) -> Floats:
        """For each content: free cores, and free thousandths GPU by GPU."""
        free = gpu.sum(axis=1)
        if not self.cores_per_gpu:
            return np.zeros(len(free))
        spread = SPREAD * self._deviation * np.sqrt(free) + 1.0
        missing = spread * np.logaddexp(0.0, (self.cores_per_gpu * free - cpu) / spread)
        return np.where(free, missing / self.cores_per_gpu, 0.0)


class Fragmentation:
    """Scores a machine by what a demand adds to the GPU that will never be used there.

    Three losses are added up: what is expected to stay empty once the GPUs are as full as they
    get, what typical demands cannot use as it stands, and what has no cores beside it.
    """

    name = "fragmentation"

    def __init__(self, counts: Mapping[Demand, int] | None = None) -> None:
        """Begin with what is known to have been asked for, by default nothing."""
        self.version = 0
        self._counts: Counter[Demand] = Counter(counts or {})
        self._arrived = self._counts.total()
        self._mix = typical(self._counts)
        self._known: tuple[States, Value] | None = None

    def arrived(self, demand: Demand) -> None:
        """Count it; what is typical is worked out anew whenever twice as many have come."""
        self._counts[demand.shape] += 1
        self._arrived += 1
        if self._arrived & (self._arrived - 1) == 0:
            self._mix = typical(self._counts)
            self._known = None
            self.version += 1

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """Whole steps by which the losses fall; negative where they grow."""
        gained, places = self.gained(states, numbers, demand)
        return best_places(np.floor(gained / STEP_MILLI), places)

    def gained(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """The same in thousandths of a GPU by every way to place it; see :func:`gains`."""
        return gains(states, numbers, demand, self._value(states))

    def _value(self, states: States) -> Value:
        """Minus the losses, up to what placing adds however it is done."""
        if self._known is not None and self._known[0] is states:
            return self._known[1]
        unusable = UnusableGpu(
            self._mix, states, single_weight=SINGLE_WEIGHT, gang_weight=GANG_WEIGHT
        )
        shortage, fill = CoreShortage(self._mix), expected_fill(self._mix)
        spared = _worth_sparing(self._mix, states.cores_per_gpu)

        def worth(cpu: Integers, gpu: Integers, model: Integers) -> Floats:
            lost = unusable(cpu, gpu, model) + spared * shortage(cpu, gpu)
            return fill[gpu].sum(axis=1) - lost

        self._known = (states, worth)
        return worth


def _worth_sparing(mix: RequestMix, cores_per_gpu: float) -> float:
    """1 while all demands together leave cores over, 0 where they ask for far too many."""
    pairs = list(zip(mix.demands, mix.parts, strict=True))
    cpu = sum(part * one.cpu_milli for one, part in pairs)
    gpu = sum(part * one.total_gpu_milli for one, part in pairs)
    if not gpu or not cores_per_gpu:
        return 0.0
    excess = cpu / gpu / cores_per_gpu - 1
    return max(0.0, min(1.0, 1 - excess / VAIN_EXCESS))
