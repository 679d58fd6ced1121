"""How busy the machine's cores were between two looks at the time that they were idle."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# The kernel tells idle time in ticks of 10 ms for all cores together: five of them tell a load to
# a fifth, and two cores pass as many in 25 ms. Shorter windows than 20 ms say nothing anywhere.
_SHORTEST_CORE_SECONDS = 0.05
_SHORTEST_SECONDS = 0.02
# Longer ones say nothing of the present.
_LONGEST_SECONDS = 5.0


class _Count(NamedTuple):
    at_seconds: float
    idle_seconds: float
    """Of all cores together, since the boot."""
    cores: int

    @property
    def shortest_seconds(self) -> float:
        return max(_SHORTEST_SECONDS, _SHORTEST_CORE_SECONDS / self.cores)


class HostLoad:
    """The machine's load since the last time it was asked for; the first window begins here.

    ``root`` is where ``proc`` lies; ``clock`` gives monotonic seconds, which ``pause`` lets pass.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._last = self._count()
        self._load: float | None = None

    def percent(self) -> float:
        """Busy share of all cores since the last call; waits where the window is too short."""
        with self._lock:
            last, now = self._last, self._count()
            if now.at_seconds - last.at_seconds > _LONGEST_SECONDS:
                last = now
            left = last.at_seconds + last.shortest_seconds - now.at_seconds
            if left > 0:
                if last is not now and self._load is not None:
                    return self._load
                self._pause(left)
                now = self._count()
            self._last, self._load = now, _busy_percent(last, now)
            return self._load

    def _count(self) -> _Count:
        at = self._clock()
        try:
            text = (self._root / "proc/stat").read_text()
            fields = text.partition("\n")[0].split()
            # Waiting for a disk (the field behind) is idle too: another program could run.
            ticks = int(fields[4]) + int(fields[5])
        except (OSError, LookupError, ValueError):  # no Linux
            import psutil

            return _Count(at, psutil.cpu_times().idle, psutil.cpu_count() or 1)
        return _Count(at, ticks / os.sysconf("SC_CLK_TCK"), max(1, text.count("\ncpu")))


def _busy_percent(last: _Count, now: _Count) -> float:
    passed = (now.at_seconds - last.at_seconds) * now.cores
    if passed <= 0:
        return 0.0
    return min(100.0, max(0.0, 100 * (1 - (now.idle_seconds - last.idle_seconds) / passed)))
