"""``exo-gpu probe``: how fast each device really is."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from exo.gpu.cli.context import print_json
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from exo.gpu.coordination.probes import Probes
    from exo.gpu.vocabulary.probe import Measure, PairResult, ProbeResult

WIDTH = 80
# Field of a result -> what people call it, its unit, and how many of it a base unit has.
_ROWS = {
    "memory_gbps": ("memory", "GB/s", 1.0),
    "fp32_gflops": ("FP32", "GFLOP/s", 1.0),
    "host_to_device_gbps": ("to the device", "GB/s", 1.0),
    "device_to_host_gbps": ("from the device", "GB/s", 1.0),
    "launch_seconds": ("launch", "us", 1e6),
}

_WAYS = {True: "the host", False: "direct", None: "not told"}


@click.command(
    epilog="Exit status: 0; 69 no device here is called that; 75 what was asked for is leased or "
    "busy; 2 usage."
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID",
    help="Only this device (id, alias or hardware id); may be repeated.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Also devices that are busy, asleep, shared or cordoned; not one that somebody leased as "
    "a whole.",
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Also copies between any two of the devices: about a second for each direction.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def command(devices: tuple[str, ...], force: bool, pairs: bool, as_json: bool) -> int:
    """Measure how fast each device really is.

    It takes two seconds a device. Shown is the median, the range of all runs, and their number.
    GB/s and GFLOP/s count 10**9; memory counts bytes read and bytes written. Results are kept,
    and decide between devices of the same score.
    """
    from exo.gpu.cli.main import NOT_NOW, SUCCESS
    from exo.gpu.coordination.pairs import probe_with_pairs
    from exo.gpu.coordination.probes import probe_devices

    between: tuple[PairResult, ...] = ()
    if pairs:
        probes, between = probe_with_pairs(devices, force=force)
    else:
        probes = probe_devices(devices, force=force)
    if as_json:
        refused = [{"device_id": name, "reason": why} for name, why in probes.refusals.items()]
        answer = {"probes": [one.to_dict() for one in probes.results], "refused": refused}
        answer["lifted"] = [cordon.to_dict() for cordon in probes.lifted]
        print_json(answer | ({"pairs": [one.to_dict() for one in between]} if pairs else {}))
    else:
        click.echo("\n".join((_table(probes), *(_pairs_table(between) if pairs else ()))))
    for cordon in probes.lifted:
        complain(f"{cordon.device_id} is back in scheduling; health had cordoned it: {cordon.why}")
    wanting = probes.refusals and (devices or not probes.results)
    return NOT_NOW if wanting else SUCCESS


def _pairs_table(results: tuple[PairResult, ...]) -> list[str]:
    """A line for each direction; the reason stands where there is no figure, told once."""
    if not results:
        return ["There are no two devices to copy between."]
    first = max(len("from"), *(len(one.source) for one in results))
    second = max(len("to"), *(len(one.target) for one in results))
    lines = [f"{'from':<{first}}  {'to':<{second}}  {'GB/s':>9}  via"]
    told: set[str] = set()
    for one in results:
        lead = f"{one.source:<{first}}  {one.target:<{second}}"
        if one.gbps is None:
            reason = one.reason or ""
            lines += _wrapped(f"{lead}  {'-':>9}  ", "" if reason in told else reason)
            told.add(reason)
            continue
        low, high = _figure(one.gbps.lowest), _figure(one.gbps.highest)
        spread = f"{low} .. {high} in {one.gbps.runs} runs"
        lines.append(f"{lead}  {_figure(one.gbps.median):>9}  {_WAYS[one.through_host]}  {spread}")
    return lines


def _table(probes: Probes) -> str:
    lines: list[str] = []
    for result in probes.results:
        lines += _block(result)
    for device_id, reason in probes.refusals.items():
        lines += [device_id, *_wrapped("    ", reason)]
    return "\n".join(lines) if lines else "No device was found."


def _block(result: ProbeResult) -> list[str]:
    """A line for each figure; what could not be measured is "-", each reason told once."""
    lines = [result.device_id]
    told: set[str] = set()
    for field, (name, unit, factor) in _ROWS.items():
        measure: Measure | None = getattr(result, field)
        lead = f"    {name:<16}"
        if measure is not None:
            figures = f"{_figure(measure.median * factor):>9} {unit:<8}"
            low, high = _figure(measure.lowest * factor), _figure(measure.highest * factor)
            lines.append(f"{lead}{figures} {low} .. {high} in {measure.runs} runs")
            continue
        reason = result.reasons.get(field, "")
        lines += _wrapped(f"{lead}{'-':>9} ", "" if reason in told else reason)
        told.add(reason)
    return lines


def _wrapped(lead: str, text: str) -> list[str]:
    indent = " " * len(lead)
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=indent) or [
        lead.rstrip()
    ]


def _figure(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
