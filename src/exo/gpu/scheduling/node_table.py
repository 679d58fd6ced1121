"""Machines as columns: what is free on each, where equal machines share one entry.

It is for thousands of machines and tens of thousands of demands: a policy scores each distinct
content of a machine once for each kind of demand, and a decision looks the scores up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exo.gpu.scheduling.machines import (
    WHOLE_MILLI,
    Demand,
    Floats,
    Integers,
    Machine,
    States,
    class_of,
)
from exo.gpu.vocabulary.errors import InvalidValue

IMPOSSIBLE = -np.inf
"""The score of a machine on which a demand does not fit."""


class NodePolicy(Protocol):
    """Who gets what: a score for every machine, and the GPU where a part of one is taken."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def version(self) -> int:
        """Rises when what it said before no longer holds."""
        ...

    def score(
        self, states: States, numbers: Integers, demand: Demand
    ) -> tuple[Floats, Integers | None]:
        """A score for each of these states, and the place of the GPU in the ascending order.

        The demand is a footprint, and fits on each of them. The higher score wins. Without places,
        a part of a GPU is taken where it leaves the smallest rest.
        """
        ...

    def arrived(self, demand: Demand) -> None:
        """Look at a demand, before it is decided on."""
        ...


class NodeTable:
    """Machines in a fixed order, and what is taken of them.

    Among machines with equal scores the first in this order wins.
    """

    def __init__(self, machines: Sequence[Machine], *, keep_classes: bool = False) -> None:
        """Begin empty; ``keep_classes`` also keeps of which classes the demands of each are."""
        self._classes: list[Counter[int]] | None = (
            [Counter() for _ in machines] if keep_classes else None
        )
        self.machines = tuple(machines)
        width = max([machine.gpus for machine in machines], default=0) or 1
        models = sorted({machine.model for machine in machines})
        gpu_milli = WHOLE_MILLI * sum(machine.gpus for machine in machines)
        cpu_milli = sum(machine.cpu_milli for machine in machines)
        self.states = States(
            models, width, cores_per_gpu=cpu_milli / gpu_milli if gpu_milli else math.inf
        )
        self.memory_bytes: Integers = np.array([one.memory_bytes for one in machines], np.int64)
        self.free = [[WHOLE_MILLI] * one.gpus for one in machines]
        self.state: Integers = np.array(
            [
                self.states.number(
                    models.index(one.model),
                    one.gpus,
                    one.cpu_milli,
                    (0,) * (width - one.gpus) + (WHOLE_MILLI,) * one.gpus,
                )
                for one in machines
            ],
            np.int64,
        )
        self._least_memory_bytes = min((one.memory_bytes for one in machines), default=0)

    def take(self, row: int, demand: Demand, devices: Sequence[int]) -> None:
        """Take a demand of a machine, on these GPUs.

        Raises:
            InvalidValue: where it does not fit.

        """
        self._change(row, demand, devices, 1)

    def give_back(self, row: int, demand: Demand, devices: Sequence[int]) -> None:
        """Undo :meth:`take`."""
        self._change(row, demand, devices, -1)

    def scarce_memory(self, demand: Demand) -> bool:
        """Whether there may be a machine with too little memory for a demand."""
        return self._least_memory_bytes < demand.memory_bytes

    def devices_for(self, row: int, demand: Demand, place: int | None = None) -> tuple[int, ...]:
        """The GPUs that a demand takes of a machine on which it fits.

        ``place`` is that of one GPU in the ascending order. Whole GPUs are taken in the order of
        their indices, a part of one where it leaves the smallest rest.
        """
        free = self.free[row]
        if not demand.gpus:
            return ()
        if demand.gpus > 1:
            fitting = [index for index, left in enumerate(free) if left >= demand.gpu_milli]
            return tuple(fitting[: demand.gpus])
        if place is None:
            left = min(left for left in free if left >= demand.gpu_milli)
        else:
            left = int(self.states.gpu[self.state[row], place])
        return (free.index(left),)

    def _change(self, row: int, demand: Demand, devices: Sequence[int], sign: int) -> None:
        model, gpus, cpu_milli, _, _ = self.states.keys[int(self.state[row])]
        free = self.free[row]
        cpu_milli -= sign * demand.cpu_milli
        memory_bytes = int(self.memory_bytes[row]) - sign * demand.memory_bytes
        left = [free[index] - sign * demand.gpu_milli for index in devices]
        machine = self.machines[row]
        if (
            not 0 <= cpu_milli <= machine.cpu_milli
            or not 0 <= memory_bytes <= machine.memory_bytes
            or len(set(devices)) != demand.gpus
            or any(not 0 <= one <= WHOLE_MILLI for one in left)
        ):
            raise InvalidValue("demand", demand, f"what {machine.name} has to give")
        for index, one in zip(devices, left, strict=True):
            free[index] = one
        self.memory_bytes[row] = memory_bytes
        self._least_memory_bytes = min(self._least_memory_bytes, memory_bytes)
        ascending = (0,) * (self.states.width - gpus) + tuple(sorted(free))
        held = self._held(row, demand, sign)
        self.state[row] = self.states.number(model, gpus, cpu_milli, ascending, held)

    def _held(self, row: int, demand: Demand, sign: int) -> int:
        if self._classes is None:
            return 0
        counts = self._classes[row]
        if demand.gpus:
            counts[class_of(demand)] += sign
        return sum(1 << one for one, count in counts.items() if count)


class Scoreboard:
    """The scores of a policy over a table, each worked out when it is first asked for."""

    def __init__(self, table: NodeTable, policy: NodePolicy) -> None:
        self._table = table
        self._policy = policy
        self._version = policy.version
        self._scores: dict[Demand, tuple[Floats, Integers]] = {}
        self._footprints: dict[Demand, Demand] = {}
        self._closed: dict[tuple[str, ...], NDArray[np.bool_]] = {}

    def scores(self, demand: Demand) -> Floats:
        """The score of every machine for a demand; minus infinity where it does not fit."""
        known, _ = self._known(demand)
        table = self._table
        scores = known[table.state]
        missing = np.isnan(scores)
        if missing.any():
            numbers = np.array(sorted(set(table.state[missing].tolist())), np.int64)
            self._work_out(demand, numbers)
            scores = self._known(demand)[0][table.state]
        if table.scarce_memory(demand):
            scores[table.memory_bytes < demand.memory_bytes] = IMPOSSIBLE
        if demand.models:
            scores[self._without(demand.models)] = IMPOSSIBLE
        return scores

    def best(self, demand: Demand) -> tuple[int, tuple[int, ...]] | None:
        """The machine with the highest score and the GPUs there, or None where it fits nowhere."""
        scores = self.scores(demand)
        row = int(scores.argmax()) if len(scores) else 0
        if not len(scores) or scores[row] == IMPOSSIBLE:
            return None
        place = int(self._known(demand)[1][self._table.state[row]])
        return row, self._table.devices_for(row, demand, None if place < 0 else place)

    def _known(self, demand: Demand) -> tuple[Floats, Integers]:
        if self._version != self._policy.version:
            self._scores.clear()
            self._version = self._policy.version
        footprint = self._footprints.get(demand)
        if footprint is None:
            footprint = self._footprints[demand] = demand.footprint
        known = self._scores.get(footprint)
        size = len(self._table.states.cpu_milli)
        if known is None or len(known[0]) < size:
            scores, places = np.full(size, np.nan), np.full(size, -1)
            if known is not None:
                scores[: len(known[0])], places[: len(known[1])] = known
            known = self._scores[footprint] = (scores, places)
        return known

    def _without(self, models: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which machines are of none of these models."""
        closed = self._closed.get(models)
        if closed is None:
            states = self._table.states
            closed = ~states.allowed(models)[states.model[self._table.state]]
            self._closed[models] = closed
        return closed

    def _work_out(self, demand: Demand, numbers: Integers) -> None:
        scores, places = self._known(demand)
        fits = self._table.states.fits(numbers, demand)
        scores[numbers[~fits]] = IMPOSSIBLE
        numbers = numbers[fits]
        if len(numbers):
            footprint = self._footprints[demand]
            scores[numbers], best = self._policy.score(self._table.states, numbers, footprint)
            if best is not None:
                places[numbers] = best
