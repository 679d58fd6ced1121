"""Draw one Mandelbrot view on every device found: an equal split first, then pull-based balancing.

``python demo.py --all-devices --output out`` prints what each device did and writes the picture
and a Gantt chart. Neighbouring tiles of different devices are compared along their seams; below
99.9 % of equal pixels the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import charts
from balance import Record, statistics
from kernel import can_render, prepare, render
from report import Phase, introduction, summary, table, verdict
from view import Canvas, View

from exo.gpu import ExoGpuError, GPUDiscoveryService, GPUExecutor
from exo.gpu.clustering import WorkloadDistributor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kernel import Rendering, Tile

    from exo.gpu.coordination.executor import Done

AGREEMENT_FLOOR = 0.999


def main(arguments: list[str] | None = None) -> int:
    """Run both phases, report and draw; the exit status."""
    options = parse(arguments)
    view = View.in_tiles(*options.size, options.tiles, options.limit)
    try:
        phases = draw_twice(view, options.devices or able_devices(every_class=options.all_devices))
    except ExoGpuError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    for phase in phases:
        print(table(phase))
    print(verdict(phases))
    files = write_pictures(phases, view, options.output)
    if options.json:
        print(json.dumps(summary(view, phases, files)))
    return status(phases)


def draw_twice(view: View, devices: list[str]) -> list[Phase]:
    """Both phases on the same workers; opening devices and compiling the shader is not timed."""
    with GPUExecutor(devices=devices, initializer=prepare) as executor:
        executor.start()
        print(introduction(view, executor.devices), flush=True)
        return [equal_split(executor, view), pulled(executor, view)]


def able_devices(*, every_class: bool) -> list[str]:
    """The devices found that can draw, best class first; of any other, say why it is left out."""
    service = GPUDiscoveryService()
    able, best = [], None
    for device in service.discover().devices:
        if not can_render(device, service.backend_of(device.device_id)):
            print(f"left out {device.device_id}: {device.backend} runs no compute shaders here")
        elif every_class or device.device_class is (best := best or device.device_class):
            able.append(device.device_id)
        else:
            print(f"left out {device.device_id}: not of class {best}, see --all-devices")
    if not able:
        sys.exit("demo.py: none of the devices found can draw")
    return able


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; a wrong one ends the program with status 2."""
    parser = argparse.ArgumentParser(description="Draw a Mandelbrot view on the devices found.")
    parser.add_argument(
        "--all-devices",
        action="store_true",
        help="every class of device, software and host beside hardware",
    )
    parser.add_argument("--devices", type=names, metavar="ID,ID", help="only these devices")
    parser.add_argument("--tiles", type=whole, default=864, help="at least so many (%(default)s)")
    parser.add_argument(
        "--size", type=size, default="3072x2048", help="pixels computed (%(default)s)"
    )
    parser.add_argument("--limit", type=whole, default=5000, help="iterations (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    if options.all_devices and options.devices:
        parser.error("--all-devices and --devices exclude each other")
    return options


def names(text: str) -> list[str]:
    """Device ids, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    return whole(width), whole(height)


def equal_split(executor: GPUExecutor, view: View) -> Phase:
    """Every device gets as many tiles as any other, fixed before the start."""
    devices = [device.device_id for device in executor.devices]
    started_at = time.time()
    distribution = WorkloadDistributor().distribute_uniform(devices, shuffled(view))
    done = executor.map_distribution(render, distribution)
    return collect("equal split", executor, view, started_at, done)


def pulled(executor: GPUExecutor, view: View) -> Phase:
    """A free slot takes the next tile, so that a fast device does more of them."""
    started_at = time.time()
    done = executor.stream(render, shuffled(view))
    return collect("pull-based", executor, view, started_at, done)


def shuffled(view: View) -> list[Tile]:
    """The tiles in an order that is random but always the same: no device gets the costly part."""
    tiles = view.tiles()
    random.Random(0).shuffle(tiles)
    return tiles


def collect(
    title: str,
    executor: GPUExecutor,
    view: View,
    started_at: float,
    done: Iterable[Done[Rendering]],
) -> Phase:
    """Take the tiles as they come, with who drew them when."""
    canvas, records = Canvas(view), []
    for tile in done:
        rendering = tile.result
        canvas.renderings[rendering.tile] = rendering
        records.append(
            Record(
                tile=rendering.tile,
                device_id=tile.device_id,
                slot=tile.slot,
                started_at=tile.started_at,
                ended_at=tile.ended_at,
                iterations=rendering.iterations,
            )
        )
    slots = Counter(device.device_id for _, device in executor.lanes)
    agreement = canvas.agreement({record.tile: record.device_id for record in records})
    figures = statistics(records, slots, started_at)
    return Phase(title, started_at, records, canvas, figures, agreement)


def write_pictures(phases: list[Phase], view: View, folder: Path) -> list[str]:
    """Write the pictures and say where, or what to install for them."""
    if not charts.can_draw():
        print(charts.INSTALL_HINT)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    picture, gantt = folder / "mandelbrot.png", folder / "gantt.png"
    counts, norms = phases[-1].canvas.assemble()
    charts.draw_picture(picture, counts, norms, view.limit)
    charts.draw_gantt(gantt, phases, view)
    print(f"wrote {picture} and {gantt}")
    return [str(picture), str(gantt)]


def status(phases: list[Phase]) -> int:
    """1 when devices disagree on more than one pixel in a thousand, else 0."""
    ratios = [phase.agreement.ratio for phase in phases]
    return int(any(ratio is not None and ratio < AGREEMENT_FLOOR for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
