"""A plan for people: a table, a picture of who has which layers, and what it rests on."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exo.gpu.vocabulary.split import DeviceShare, Shortage, SplitPlan
    from exo.gpu.vocabulary.split_network import NetworkPlan

WIDTH = 80
_HEADER = ("DEVICE", "LAYERS", "COUNT", "WEIGHTS", "CACHE", "USABLE", "STEP", "SHARE")
_MARKS = "0123456789abcdefghijklmnopqrstuvwxyz"


def plan_view(plan: SplitPlan, *, width: int = WIDTH) -> str:
    """The plan, or why there is none."""
    lines = list(_split_lines(plan, width) if plan.fits else _shortage_lines(plan, width))
    for one in plan.left_out:
        lines += _wrapped(f"left out: {one.device_id}: {one.reason}", width)
    for one in _together(plan):
        lines += _wrapped(f"assumed: {one}", width)
    return "\n".join(lines)


def _together(plan: SplitPlan) -> Iterator[str]:
    """What is assumed, what holds for several devices said once."""
    of_devices: dict[str, list[str]] = {}
    for device in plan.devices:
        for one in device.assumptions:
            of_devices.setdefault(one, []).append(device.device_id)
    own = {f"{name}: {text}" for text, names in of_devices.items() for name in names}
    yield from (one for one in plan.assumptions if one not in own)
    yield from (f"{', '.join(names)}: {text}" for text, names in of_devices.items())


def _split_lines(plan: SplitPlan, width: int) -> Iterator[str]:
    yield f"{plan.model}: {plan.layer_count} layers for {plan.goal.value}, {_asked(plan)}"
    yield ""
    rows = [_HEADER, *(_row(share, plan) for share in plan.shares)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADER))]
    for row in rows:
        cells = [
            cell.ljust(size) if place < 2 else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    yield ""
    yield f"[{_picture(plan.shares, plan.layer_count, width - 2)}]"
    marks = (f"{_mark(place)} {one.device_id}" for place, one in enumerate(plan.shares))
    yield from _wrapped(", ".join(marks), width)
    yield ""
    yield from _wrapped(_foretold(plan), width)
    yield from _wrapped(_why(plan), width)


def _asked(plan: SplitPlan) -> str:
    sequences = "1 sequence" if plan.batch == 1 else f"{plan.batch} sequences"
    each = " in each device" if plan.goal == "throughput" and len(plan.shares) > 1 else ""
    return f"{sequences} of {plan.context_tokens} tokens{each}"


def _row(share: DeviceShare, plan: SplitPlan) -> tuple[str, ...]:
    total = sum(one.decode_seconds for one in plan.shares)
    part = share.decode_seconds / total if total else 0.0
    return (
        share.device_id,
        f"{share.first_layer}-{share.end_layer - 1}",
        str(share.layer_count),
        format_size(share.weight_bytes),
        format_size(share.cache_bytes),
        format_size(share.usable_bytes),
        _time(share.decode_seconds),
        f"{100 * part:.0f} %",
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def _mark(place: int) -> str:
    return _MARKS[place % len(_MARKS)]


def _picture(shares: Sequence[DeviceShare], layers: int, width: int) -> str:
    """One mark for each layer where there is room, else for equal parts of the model."""
    cells = min(layers, width)
    marks: list[str] = []
    for cell in range(cells):
        layer = cell * layers // cells
        place = next(n for n, one in enumerate(shares) if layer < one.end_layer)
        marks.append(_mark(place))
    return "".join(marks)


def _foretold(plan: SplitPlan) -> str:
    decode = plan.decode_tokens_per_second or 0.0
    text = f"decode {_rate(decode)} tokens/s"
    if plan.batch > 1 or plan.goal == "throughput":
        text += f" in all, {_rate(plan.sequence_tokens_per_second or 0.0)} for each sequence"
    if plan.prefill_tokens_per_second is None:
        return f"{text}; prefill not foretold: a device's compute, or the parameters, are not known"
    return f"{text}; prefill {_rate(plan.prefill_tokens_per_second)} tokens/s"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _why(plan: SplitPlan) -> str:
    if plan.goal == "latency":
        text = f"the most time of a token goes to {plan.bottleneck}"
    else:
        text = f"the pace is set by {plan.bottleneck}"
    if plan.optimal:
        return f"{text}; no other split of these devices is better"
    return f"{text}; another split may be better by {100 * (plan.gap or 0.0):.1f} % at most"


def _shortage_lines(plan: SplitPlan, width: int) -> Iterator[str]:
    shortage = plan.shortage
    assert shortage is not None
    usable = sum(device.usable_bytes for device in plan.devices)
    yield from _wrapped(
        f"{plan.model} does not fit: {_asked(plan)}; {format_size(shortage.missing_bytes)} are "
        f"missing, and {format_size(usable)} can be used on {len(plan.devices)} devices",
        width,
    )
    for line in _advice(shortage, plan):
        yield from _wrapped(f"would fit: {line}", width)


def _advice(shortage: Shortage, plan: SplitPlan) -> Iterator[str]:
    if shortage.largest_context_tokens is not None:
        yield f"a context of {shortage.largest_context_tokens} tokens"
    if shortage.layers_on_host is not None:
        yield (
            f"the first {shortage.layers_on_host} of {plan.layer_count} layers in the machine's "
            f"memory, {format_size(shortage.host_bytes)} (--host)"
        )
    if shortage.fits_for_latency:
        yield "the same with one batch under way in place of one in each device (--goal latency)"
    if shortage.fits_when_empty:
        yield "the same once what is on these devices now has left them"


def network_view(plan: NetworkPlan) -> str:
    """Where the layers are, what flows, and what a token takes on its way."""
    lines = [
        f"{name:<16} {first}-{end - 1}"
        for name, (first, end) in sorted(plan.placement.items(), key=lambda one: one[1])
    ]
    gap = "" if plan.gap is None else f" ({100 * plan.gap:.1f} % above at most)"
    lines.append(f"flow {plan.tokens_per_second:.2f} tokens/s; bound {plan.bound:.2f}{gap}")
    if plan.token_seconds is not None:
        lines.append(
            f"a token takes {_time(plan.token_seconds)} through {plan.nodes_on_way:.1f} nodes on "
            f"average: {1 / plan.token_seconds:.1f} tokens/s for one sequence"
        )
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="    ")
