"""Machines with their GPUs, what a demand takes of one, and the distinct contents they are in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.units import check_whole

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

WHOLE_MILLI = 1000
"""A whole GPU, in thousandths."""

_FIRST_STATES = 256

Content = tuple[int, int, int, tuple[int, ...], int]
"""Model, GPUs, free cores, what is free of each GPU (in thousandths), and the classes held."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine has while nothing runs on it."""

    name: str
    cpu_milli: int
    """Processor cores, in thousandths."""
    memory_bytes: int
    gpus: int
    model: str = ""

    def __post_init__(self) -> None:
        """Check the amounts."""
        for field in ("cpu_milli", "memory_bytes", "gpus"):
            check_whole(field, getattr(self, field), low=0)


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What one piece of work takes of one machine.

    Raises:
        InvalidValue: for a negative amount, or thousandths that no GPU has.

    """

    cpu_milli: int
    memory_bytes: int
    gpus: int = 0
    gpu_milli: int = 0
    """Of each of its GPUs, in thousandths; 0 where it takes none."""
    models: tuple[str, ...] = ()
    """The only models that will do; empty: any."""

    def __post_init__(self) -> None:
        """Check the amounts."""
        for field in ("cpu_milli", "memory_bytes", "gpus"):
            check_whole(field, getattr(self, field), low=0)
        check_whole("gpu_milli", self.gpu_milli, low=0)
        if self.gpu_milli > WHOLE_MILLI or bool(self.gpus) != bool(self.gpu_milli):
            raise InvalidValue("gpu_milli", self.gpu_milli, "within 1..1000, and 0 without a GPU")

    @property
    def total_gpu_milli(self) -> int:
        """Of all its GPUs together."""
        return self.gpus * self.gpu_milli

    @property
    def is_share(self) -> bool:
        """Whether it takes a part of one GPU."""
        return self.gpus == 1 and self.gpu_milli < WHOLE_MILLI

    @property
    def shape(self) -> Demand:
        """The same without its memory: one kind of demand."""
        return msgspec.structs.replace(self, memory_bytes=0)

    @property
    def footprint(self) -> Demand:
        """What it changes in a machine's content: its cores and GPUs, wherever it may go."""
        return msgspec.structs.replace(self, memory_bytes=0, models=())


def class_of(demand: Demand) -> int:
    """0 for a part of a GPU, else how many GPUs; -1 for a demand without one."""
    if not demand.gpus:
        return -1
    return 0 if demand.is_share else demand.gpus


class States:
    """The distinct contents of machines, numbered: free cores, free GPU by GPU, model.

    ``gpu`` holds the free thousandths of each GPU, ascending, with zeros in front where a machine
    has fewer GPUs than the widest; columns hold :attr:`count` rows that mean something. ``held``
    has a bit for each :func:`class_of` a demand that is there, where the table keeps that.
    ``cores_per_gpu`` is what all machines together have of the one for the other while empty.
    """

    def __init__(
        self, models: Sequence[str], width: int, *, cores_per_gpu: float = math.inf
    ) -> None:
        self.models = tuple(models)
        self.width = width
        self.cores_per_gpu = cores_per_gpu
        self.count = 0
        self.cpu_milli: Integers = np.zeros(_FIRST_STATES, np.int64)
        self.model: Integers = np.zeros(_FIRST_STATES, np.int64)
        self.gpus: Integers = np.zeros(_FIRST_STATES, np.int64)
        self.gpu: Integers = np.zeros((_FIRST_STATES, width), np.int64)
        self.held: Integers = np.zeros(_FIRST_STATES, np.int64)
        self.keys: list[Content] = []
        self._numbers: dict[Content, int] = {}

    def number(
        self, model: int, gpus: int, cpu_milli: int, free: tuple[int, ...], held: int = 0
    ) -> int:
        """The number of a content; ``free`` is ascending and as wide as the widest machine."""
        key = (model, gpus, cpu_milli, free, held)
        number = self._numbers.get(key)
        if number is not None:
            return number
        number = self.count
        if number == len(self.cpu_milli):
            self._grow()
        self.cpu_milli[number], self.model[number], self.gpus[number] = cpu_milli, model, gpus
        self.gpu[number], self.held[number] = free, held
        self._numbers[key] = number
        self.keys.append(key)
        self.count += 1
        return number

    def fits(self, numbers: Integers, demand: Demand) -> NDArray[np.bool_]:
        """Where the cores and GPUs of a demand fit; memory and model are not looked at."""
        fits = self.cpu_milli[numbers] >= demand.cpu_milli
        if demand.gpus == 1:
            fits &= self.gpu[numbers, -1] >= demand.gpu_milli
        elif demand.gpus:
            fits &= (
                self.gpu[numbers, -demand.gpus] >= demand.gpu_milli
                if (demand.gpus <= self.width)
                else False
            )
        return fits

    def allowed(self, models: Iterable[str]) -> NDArray[np.bool_]:
        """Which models, by their number, are among these."""
        wanted = set(models)
        return np.array([model in wanted for model in self.models], np.bool_)

    def _grow(self) -> None:
        for name in ("cpu_milli", "model", "gpus", "gpu", "held"):
            column: NDArray[Any] = getattr(self, name)
            setattr(self, name, np.concatenate((column, np.zeros_like(column))))
