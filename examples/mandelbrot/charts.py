"""The two pictures: the Mandelbrot view itself, and which device did which tile when."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from balance import Record
    from matplotlib.axes import Axes
    from report import Phase
    from view import View

INSTALL_HINT = "the pictures need matplotlib: pip install 'exo-gpu[plot]'"

# Dark blue over white and gold back to dark blue, once in every ~2 doublings of the count.
PALETTE = [(0, 7, 100), (32, 107, 203), (237, 255, 255), (255, 170, 0), (60, 10, 20)]

CYCLES_PER_DOUBLING = 0.55


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def colours(counts: np.ndarray, norms: np.ndarray, limit: int) -> np.ndarray:
    """Red, green and blue (0..1) of every pixel, without bands; what never escaped is black."""
    inside = counts >= limit
    # log2 log2 |z|^2 at the escape turns the whole counts into a continuous one.
    fraction = 3 - np.log2(np.log2(np.where(inside, 256, np.maximum(norms, 2))))
    smooth = np.log2(np.maximum(counts + fraction, 1))
    lightest = smooth[~inside].min() if not inside.all() else 0
    place = (smooth - lightest) * CYCLES_PER_DOUBLING % 1 * len(PALETTE)
    cycle = np.array([*PALETTE, PALETTE[0]]) / 255
    painted = np.stack([np.interp(place, np.arange(len(cycle)), band) for band in cycle.T], axis=-1)
    painted[inside] = 0
    return painted


def halved(pixels: np.ndarray) -> np.ndarray:
    """The picture at half its size, every four pixels averaged, so that fine lines are smooth."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    return pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))


def draw_picture(path: Path, counts: np.ndarray, norms: np.ndarray, limit: int) -> None:
    """Write the view as a PNG of half its width and height."""
    from matplotlib import image

    image.imsave(path, np.clip(halved(colours(counts, norms, limit)), 0, 1))


def draw_gantt(
    path: Path,
    phases: Sequence[Phase],
    view: View,
) -> None:
    """Write a chart per phase: the tiles of every slot over time, and who drew which tile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.6 * len(phases) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(phases), 2, width_ratios=(3, 1), squeeze=False)
    longest = max(phase.statistics.makespan_seconds for phase in phases)
    for (timeline, tiles), phase in zip(panels, phases, strict=True):
        figures = phase.statistics
        devices = [share.device_id for share in figures.devices]
        palette = {device: f"C{place % 10}" for place, device in enumerate(devices)}
        _draw_timeline(timeline, phase.records, palette, phase.started_at)
        summary = f"{figures.makespan_seconds:.1f} s, balance {figures.balance:.2f}"
        timeline.set_title(f"{phase.title}: {summary}", loc="left")
        timeline.set_xlim(0, longest * 1.01)
        _draw_tiles(tiles, phase.records, palette, view)
    panels[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def _draw_timeline(
    axes: Axes, records: Sequence[Record], palette: Mapping[str, str], started_at: float
) -> None:
    order = list(palette)
    slots = sorted(
        {(record.device_id, record.slot) for record in records},
        key=lambda lane: (order.index(lane[0]), lane[1]),
    )
    for place, lane in enumerate(slots):
        tiles = sorted(
            (record.started_at - started_at, record.ended_at - record.started_at)
            for record in records
            if (record.device_id, record.slot) == lane
        )
        colour = palette[lane[0]]
        shades = [(colour, 1.0 if number % 2 else 0.7) for number in range(len(tiles))]
        axes.broken_barh(tiles, (place - 0.4, 0.8), facecolors=shades)
    axes.set_yticks(range(len(slots)), [device_id for device_id, _ in slots])
    axes.invert_yaxis()


def _draw_tiles(
    axes: Axes, records: Sequence[Record], palette: Mapping[str, str], view: View
) -> None:
    from matplotlib.colors import to_rgb

    drawn = np.ones((view.rows, view.columns, 3))
    for record in records:
        drawn[divmod(record.tile, view.columns)] = to_rgb(palette[record.device_id])
    axes.imshow(drawn, interpolation="nearest")
    axes.set_title("who drew which tile", fontsize="small")
    axes.set_axis_off()
