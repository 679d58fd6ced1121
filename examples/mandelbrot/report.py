"""What the demo says: who takes part, a table for each phase, the verdict, the same as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balance import Record, Statistics
    from view import Agreement, Canvas, View

    from exo.gpu.backend import GPUDevice


@dataclass(frozen=True, eq=False)
class Phase:
    """One complete drawing of the view, and how it went. ``started_at`` is in Unix seconds."""

    title: str
    started_at: float
    records: Sequence[Record]
    canvas: Canvas
    statistics: Statistics
    agreement: Agreement


def introduction(view: View, devices: Sequence[GPUDevice]) -> str:
    """What is drawn on what."""
    size = f"{view.width} x {view.height} pixels in {view.columns * view.rows} tiles"
    lines = [f"{size}, at most {view.limit} iterations a pixel, on"]
    for device in devices:
        slots = f", {device.slots} slots" if device.slots > 1 else ""
        lines.append(f"  {device.device_id:<10} {device.name} ({device.device_class}{slots})")
    if len(devices) == 1:
        lines.append("One device only: both ways are the same, and there is no seam to compare.")
    return "\n".join(lines)


def table(phase: Phase) -> str:
    """A line for every device, then the makespan and the balance."""
    figures = phase.statistics
    lines = [
        f"\n{phase.title}",
        f"  {'device':<10} {'speed':>22} {'tiles':>7} {'share of work':>14} {'busy':>7}",
    ]
    for share in figures.devices:
        speed = f"{share.speed / 1e6:,.0f} M iterations/s" if share.tiles else "-"
        work = f"{share.iterations / figures.iterations:.1%}"
        name, busy = share.device_id, f"{share.busy_ratio:.1%}"
        lines.append(f"  {name:<10} {speed:>22} {share.tiles:>7} {work:>14} {busy:>7}")
    makespan, balance = f"{figures.makespan_seconds:.2f} s", f"{figures.balance:.3f}"
    lines.append(f"  makespan {makespan}, balance {balance}")
    return "\n".join(lines)


def verdict(phases: Sequence[Phase]) -> str:
    """Which phase was faster, and how far the devices agree."""
    first, second = (phase.statistics for phase in phases)
    part = second.makespan_seconds / first.makespan_seconds
    lines = [
        f"\n{phases[1].title} took {part:.0%} of the time of the {phases[0].title};"
        " balance 1: no slot ever waits"
    ]
    for phase in phases:
        seams = phase.agreement
        if seams.ratio is None:
            lines.append(f"{phase.title}: no tiles of different devices adjoin")
        else:
            share = f"{seams.equal} of {seams.compared} pixels ({seams.ratio:.4%})"
            lines.append(f"{phase.title}: where tiles of two devices meet, equal: {share}")
    return "\n".join(lines)


def summary(view: View, phases: Sequence[Phase], files: Sequence[str]) -> dict[str, Any]:
    """Everything that was found out, as plain values."""
    return {
        "width": view.width,
        "height": view.height,
        "tiles": view.columns * view.rows,
        "limit": view.limit,
        "phases": [
            {
                "title": phase.title,
                **asdict(phase.statistics),
                "agreement": {**asdict(phase.agreement), "ratio": phase.agreement.ratio},
            }
            for phase in phases
        ],
        "files": list(files),
    }
