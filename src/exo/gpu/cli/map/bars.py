"""The bars of ``--eta``: one for each device, and below them how long it will still take."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exo.gpu.cli.progress import Progress

_BAR_COLUMNS = 24


class Bars:
    """Paints how far each device is of all that there is to do; made when the work begins."""

    def __init__(self, device_ids: tuple[str, ...]) -> None:
        self._device_ids = device_ids
        self._begun_at = time.monotonic()

    def __call__(self, progress: Progress, width: int) -> str:
        """The text, as many lines as there are devices and one more."""
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        seconds = max(time.monotonic() - self._begun_at, 1e-3)
        table = Table.grid(padding=(0, 1))
        for _ in range(4):
            table.add_column(no_wrap=True)
        for device_id in dict.fromkeys((*self._device_ids, *progress.by_device)):
            done = progress.by_device[device_id]
            bar = (
                ProgressBar(total=max(progress.total, 1), completed=done, width=_BAR_COLUMNS)
                if progress.total is not None
                else ""
            )
            table.add_row(device_id, bar, f"{done} done", f"{done / seconds:.1f}/s")
        text = io.StringIO()
        Console(file=text, width=width, color_system=None, legacy_windows=False).print(table)
        return text.getvalue() + summary_line(progress, seconds)[:width]


def summary_line(progress: Progress, seconds: float) -> str:
    """``"12/200 done, 1 failed, 6.0/s, 31 s left"``; what is not known is not said."""
    whole = "" if progress.total is None else f"/{progress.total}"
    parts = [f"{progress.done}{whole} done"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    rate = progress.done / seconds
    parts.append(f"{rate:.1f}/s")
    if progress.total is not None and progress.done:
        parts.append(f"{max(0, progress.total - progress.done) / rate:.0f} s left")
    return ", ".join(parts)
