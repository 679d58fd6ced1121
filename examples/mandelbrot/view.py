"""The part of the plane that is drawn: cut into tiles, put together, compared along the seams."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from kernel import Tile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kernel import Rendering

# Where the spirals of the seahorse valley's neighbour are; wide enough that neighbouring
# coordinates differ by many steps of a 32-bit float.
CENTRE_REAL, CENTRE_IMAGINARY, WIDTH = -0.0876, 0.6558, 4.5e-3

# A WebGPU device takes 65,535 workgroups in a row at least: 64 pixels each, frame included.
LARGEST_EDGE = 2000


@dataclass(frozen=True)
class View:
    """A picture of ``width`` x ``height`` pixels in square tiles, smaller at the rim."""

    width: int
    height: int
    edge: int
    limit: int

    @classmethod
    def in_tiles(cls, width: int, height: int, tiles: int, limit: int) -> View:
        """The view with the largest square tiles of which there are at least ``tiles``."""
        edge = math.isqrt(width * height // tiles)
        return cls(width, height, min(max(edge, 1), LARGEST_EDGE), limit)

    @property
    def columns(self) -> int:
        """Tiles side by side."""
        return -(-self.width // self.edge)

    @property
    def rows(self) -> int:
        """Tiles one below the other."""
        return -(-self.height // self.edge)

    def tiles(self) -> list[Tile]:
        """All tiles, row by row, each with a frame one pixel wide of its neighbours' pixels."""
        step = WIDTH / self.width
        across = np.arange(-1, self.width + 1) - (self.width - 1) / 2
        down = np.arange(-1, self.height + 1) - (self.height - 1) / 2
        real = (CENTRE_REAL + across * step).astype(np.float32)
        imaginary = (CENTRE_IMAGINARY - down * step).astype(np.float32)
        return [
            Tile(
                index=row * self.columns + column,
                columns=real[column * self.edge : (column + 1) * self.edge + 2],
                rows=imaginary[row * self.edge : (row + 1) * self.edge + 2],
                limit=self.limit,
            )
            for row, column in product(range(self.rows), range(self.columns))
        ]

    def neighbours(self) -> Iterator[tuple[int, int, str]]:
        """Every pair of adjoining tiles, the left or upper one first, and how they lie."""
        for row, column in product(range(self.rows), range(self.columns)):
            index = row * self.columns + column
            if column + 1 < self.columns:
                yield index, index + 1, "beside"
            if row + 1 < self.rows:
                yield index, index + self.columns, "below"


@dataclass(frozen=True)
class Agreement:
    """Pixels that two different devices both computed, and those with the same count."""

    compared: int
    equal: int

    @property
    def ratio(self) -> float | None:
        """None where nothing could be compared, as with one device."""
        return self.equal / self.compared if self.compared else None


@dataclass(frozen=True, eq=False)
class Canvas:
    """The renderings of a view's tiles, by tile."""

    view: View
    renderings: dict[int, Rendering] = field(default_factory=dict)

    def assemble(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and norms of the whole picture, the frames cut off."""
        view = self.view
        counts = np.zeros((view.height, view.width), np.uint32)
        norms = np.zeros((view.height, view.width), np.float32)
        for index, rendering in self.renderings.items():
            row, column = divmod(index, view.columns)
            place = np.s_[
                row * view.edge : (row + 1) * view.edge,
                column * view.edge : (column + 1) * view.edge,
            ]
            counts[place] = rendering.counts[1:-1, 1:-1]
            norms[place] = rendering.norms[1:-1, 1:-1]
        return counts, norms

    def agreement(self, device_of: Mapping[int, str]) -> Agreement:
        """Compare the two-pixel strips that adjoining tiles of different devices share."""
        compared = equal = 0
        for first, second, how in self.view.neighbours():
            if device_of[first] == device_of[second]:
                continue
            one, other = self.renderings[first].counts, self.renderings[second].counts
            if how == "below":
                one, other = one.T, other.T
            same = one[:, -2:] == other[:, :2]
            compared += same.size
            equal += int(same.sum())
        return Agreement(compared, equal)
