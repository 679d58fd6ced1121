"""What each contender of ``bench_balance.py`` runs: one kernel on one driver on one core."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

EXAMPLE = Path(__file__).parents[1] / "examples" / "mandelbrot"
sys.path.insert(0, str(EXAMPLE))

import numpy as np  # noqa: E402
from balance import Record  # noqa: E402 - of the example's folder
from kernel import ShaderRenderer, Tile  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

LISTS = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
ONE_THREAD = {"LP_NUM_THREADS": "1"}

_POINT = np.zeros(1, np.float32)

# Both processes claim a driver at once; one that waits for the other looks so often.
LOOK_SECONDS = 0.01


@dataclass(frozen=True)
class Place:
    """One worker's driver, and the core that is its own."""

    name: str
    manifest: str
    core: int

    def environment(self) -> dict[str, str]:
        """What makes the loader find this driver alone, which then works with one thread."""
        return dict.fromkeys(LISTS, self.manifest) | ONE_THREAD


class Renderer:
    """Opens the one device that this process can see, bound to its core."""

    def __init__(self, place: Place) -> None:
        from exo.gpu.backends.vulkan import VulkanGPUBackend

        os.sched_setaffinity(0, {place.core})
        self.place = place
        backend = VulkanGPUBackend()
        (device,) = backend.find()
        self._render = ShaderRenderer(backend, device.device_id)
        self(*warm_up_tiles(1))

    def __call__(self, tile: Tile) -> Record:
        """Compute a tile; who did it when, and how many iterations it took."""
        started_at = time.time()
        counts, _ = self._render(tile)
        iterations = int(counts.sum(dtype="uint64"))
        return Record(tile.index, self.place.name, 0, started_at, time.time(), iterations)


_mine: list[Renderer] = []


def prepare(places: tuple[Place, ...]) -> None:
    """Open the device of a worker of exo-gpu, which is pinned to one of the places already."""
    from exo.gpu import current_device

    device = current_device()
    manifest = None if device is None else device.driver_manifest
    _mine.append(Renderer(next(place for place in places if place.manifest == manifest)))


def claim(places: tuple[Place, ...], folder: str) -> str:
    """Open the device of a worker that nobody pins: the first place that no other has taken.

    Returns once all places are taken, so that as many workers as there are places have one.
    """
    taken = [Path(folder, place.name) for place in places]
    for place, mark in zip(places, taken, strict=True):
        if _mine:
            break
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        os.environ.update(place.environment())
        _mine.append(Renderer(place))
    while not all(mark.exists() for mark in taken):
        time.sleep(LOOK_SECONDS)
    return _mine[0].place.name


def render(tile: Tile) -> Record:
    """One tile, on the device of this process."""
    return _mine[0](tile)


def warm_up_tiles(count: int) -> list[Tile]:
    """Tiles of one pixel, which cost nothing but the way to a worker and back."""
    return [Tile(index=0, columns=_POINT, rows=_POINT, limit=1) for _ in range(count)]


def actor_class() -> Callable[..., object]:
    """Ray's kind of worker; made here, so that only those who measure Ray import it."""

    class Actor:
        def __init__(self, place: Place) -> None:
            os.environ.update(place.environment())
            self._renderer = Renderer(place)

        def render(self, tile: Tile) -> Record:
            return self._renderer(tile)

    return Actor
