"""Lots that are drawn elsewhere, or always fall the same way: chance as an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Lots = Callable[[int], NDArray[np.float64]]
    """So many numbers, each within 0..1 without 1: ``numpy.random.default_rng(7).random``."""


def fixed_lots(seed: int = 0) -> Lots:
    """Lots that a seed decides, on every machine the same: the generator splitmix64.

    Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    state = np.uint64(seed % 2**64)

    def draw(count: int) -> NDArray[np.float64]:
        nonlocal state
        with np.errstate(over="ignore"):
            steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state
            state = state + np.uint64(count) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (steps ^ (steps >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        whole = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)
        return whole.astype(np.float64) * 2.0**-53

    return draw
