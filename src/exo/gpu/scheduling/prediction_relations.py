"""How alike two pieces of experience are: of kinds of work by their names, of devices by probes.

Kinds whose names differ in nothing but their numbers are relatives, the nearer the nearer those
numbers' logarithms are: ``resnet batch 16`` and ``resnet batch 32`` are near, ``train -n 8`` and
``render -n 8`` have nothing in common but the devices. Devices of one model are nearly the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

# Variances, in squared logarithms, of what the time of an item is made of. Only their ratios
# matter for a forecast; together they are such that a table of measured speeds lies within its
# ranges.
_ANYTHING = 10.0
_DEVICE = 0.2
_FAMILY = 0.2
_FAMILY_ON_DEVICE = 0.1
_KIND = 0.1
_KIND_ON_DEVICE = 0.3
_KIND_ALONE = 0.0006
UNSEEN = 0.002
"""Of a measurement beside its own scatter: two runs on other days differ by some percent."""

# Relatives lose a third of what they have in common for each factor of e**1.6 (about 5).
_REACH = 4.0

# Two cards of one model, in slots and cases of their own.
_SAME_MODEL = 0.98

# Work is bound by memory or by compute, or by something between: a uniform share of either.
_BALANCE = 1 / 12


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a device before it has done anything: model, and measured speeds.

    ``memory_gbps`` and ``gflops`` are what a probe found; None where there was none.
    """

    model: str = ""
    memory_gbps: float | None = None
    gflops: float | None = None

    @property
    def roof(self) -> tuple[float, float] | None:
        """Logarithms of bandwidth and compute; None where either is not known."""
        if not self.memory_gbps or not self.gflops:
            return None
        return math.log(self.memory_gbps), math.log(self.gflops)


class Cell(msgspec.Struct, frozen=True):
    """A kind of work on a device."""

    kind: str
    device: str


def family_of(kind: str) -> str:
    """The name of a kind less its numbers."""
    return _NUMBER.sub("#", kind)


def numbers_of(kind: str) -> tuple[float, ...]:
    """Logarithms of the numbers in a name; one more than each, so that 0 has one."""
    return tuple(math.log(float(text) + 1) for text in _NUMBER.findall(kind))


class Field:
    """Cells as arrays, to be compared with others by the million."""

    def __init__(self, cells: Sequence[Cell], traits: dict[str, Traits]) -> None:
        self.cells = tuple(cells)
        self._families = [family_of(cell.kind) for cell in cells]
        self._numbers = [numbers_of(cell.kind) for cell in cells]
        self._models = [traits.get(cell.device, Traits()).model for cell in cells]
        roofs = {name: one.roof for name, one in traits.items()}
        known = [roof for roof in roofs.values() if roof is not None]
        middle = np.mean(known, axis=0) if known else np.zeros(2)
        lines = [roofs.get(cell.device) for cell in cells]
        off = np.array([(0.0, 0.0) if one is None else one - middle for one in lines])
        off = off.reshape(len(cells), 2)
        self.trend: NDArray[np.float64] = off.mean(axis=1)
        """By how much each device is faster than the mean one, as a logarithm, half by its memory
        and half by its compute; 0 where it was not probed."""
        self._balance: NDArray[np.float64] = off[:, 0] - off[:, 1]

    def relation(self, other: Field) -> Matrix:
        """The covariance of each cell here with each cell there."""
        family = self._same(self._families, other._families)
        near = np.where(family, np.exp(-self._distances(other, family) / _REACH), 0.0)
        kind = self._same([cell.kind for cell in self.cells], [cell.kind for cell in other.cells])
        device = self._devices(other)
        balance = _BALANCE * np.outer(self._balance, other._balance)
        on_any = _FAMILY * family + _KIND * near + _KIND_ALONE * kind + balance * (1 + family) / 2
        on_this = _DEVICE + _FAMILY_ON_DEVICE * family + _KIND_ON_DEVICE * near
        return _ANYTHING + on_any + device * on_this

    def _devices(self, other: Field) -> Matrix:
        here, there = [cell.device for cell in self.cells], [cell.device for cell in other.cells]
        named = np.array([bool(model) for model in self._models])
        model = self._same(self._models, other._models) * named[:, None] * _SAME_MODEL
        return np.maximum(self._same(here, there), model)

    def _distances(self, other: Field, family: Matrix) -> Matrix:
        found = np.zeros(family.shape)
        for name in set(self._families) & set(other._families):
            here = [at for at, one in enumerate(self._families) if one == name]
            there = [at for at, one in enumerate(other._families) if one == name]
            ours = np.array([self._numbers[at] for at in here])
            theirs = np.array([other._numbers[at] for at in there])
            apart = ours[:, None, :] - theirs[None, :, :]
            found[np.ix_(here, there)] = np.sqrt((apart**2).sum(axis=2))
        return found

    @staticmethod
    def _same(here: Sequence[str], there: Sequence[str]) -> Matrix:
        numbers = {name: at for at, name in enumerate(dict.fromkeys((*here, *there)))}
        ours = np.array([numbers[name] for name in here], dtype=np.int64)
        theirs = np.array([numbers[name] for name in there], dtype=np.int64)
        return np.asarray(ours[:, None] == theirs[None, :], dtype=np.float64)
