"""What a terminal says of how far ``map`` is: one line, or a bar for each device."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from exo.gpu.cli.render import progress_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# Work that ends sooner needs no line; a line that changes faster cannot be read.
SHOWN_AFTER_SECONDS = 0.5
UPDATE_SECONDS = 0.1

# As many as fit in a line; the whole list is in the output of --json.
FAILED_SHOWN = 10

_ERASE = "\r\x1b[K"  # ECMA-48: to the first column, erase to the end of the line
_UP = "\x1b[1A"


class Progress:
    """Counts items, and keeps a text on ``stream`` up to date where that is a terminal.

    ``total`` is None where the end is not known, ``stream`` where the caller closed it. Use it in
    a ``with`` block.
    """

    def __init__(self, stream: TextIO | None, *, total: int | None) -> None:
        self.done = 0
        self.failed = 0
        self.failed_items: list[int] = []
        """The first of them, by index."""
        self.by_device: Counter[str] = Counter()
        """Items that ended, by device."""
        self.total = total
        self._stream = stream
        self._paint: Callable[[Progress, int], str] = _one_line
        self._drawn = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="exo-gpu-progress", daemon=True)

    def paint_with(self, paint: Callable[[Progress, int], str]) -> None:
        """Let ``paint`` make the text, given a width in columns, instead of the one line."""
        self._paint = paint

    def __enter__(self) -> Progress:
        """Begin to draw, on a thread, where somebody can see it."""
        if self._stream is not None and self._stream.isatty():
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self._ended.set()
        if self._ticker.is_alive():
            self._ticker.join()
        with self.aside():
            pass

    def count(self, index: int, device_id: str | None, *, succeeded: bool) -> None:
        """One more item has ended, on the device where one had begun it."""
        with self._lock:
            self.done += 1
            self.by_device[device_id or "no device"] += 1
            if not succeeded:
                self.failed += 1
                self.failed_items = [*self.failed_items, index][:FAILED_SHOWN]

    def skip(self) -> None:
        """One item less to do: it was done before."""
        with self._lock:
            if self.total is not None:
                self.total -= 1

    @contextmanager
    def aside(self) -> Generator[None]:
        """Keep the line out of the way while something else is written there."""
        with self._lock:
            if self._drawn:
                self._show("")
            yield

    def draw(self) -> None:
        """Write the line where it changed."""
        with self._lock:
            width = shutil.get_terminal_size().columns - 1
            text = self._paint(self, width)
            if text != self._drawn:
                self._show(text)

    def _show(self, text: str) -> None:
        """Write over what was drawn last, whose last line the cursor is in."""
        if self._stream is not None:
            erase = _ERASE + (_UP + _ERASE) * self._drawn.count("\n")
            self._stream.write(erase + text)
            self._stream.flush()
            self._drawn = text

    def _tick(self) -> None:
        pause = SHOWN_AFTER_SECONDS
        while not self._ended.wait(pause):
            self.draw()
            pause = UPDATE_SECONDS


def _one_line(progress: Progress, width: int) -> str:
    return progress_line(progress.done, progress.failed, progress.total, progress.by_device, width)
