"""The kernel's own count of the processes here that it killed for want of memory."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from exo.gpu.execution.outcome import oom_kills

# A count younger than this is not read again before a process starts: it costs some 20 us.
_REUSE_SECONDS = 1.0


class MemoryKills:
    """Counts from :meth:`mark` on; unknown (None) where the kernel does not tell.

    ``root`` is the root of the file system, which tests choose.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._path = _counter(root) if sys.platform == "linux" else None
        self._before: int | None = None
        self._marked = float("-inf")

    def mark(self) -> None:
        """Count from now on."""
        now = time.monotonic()
        if now > self._marked + _REUSE_SECONDS:
            self._before, self._marked = self._read(), now

    def since(self) -> int | None:
        """How many were killed since the mark; another count begins."""
        before, self._before = self._before, self._read()
        return None if before is None or self._before is None else self._before - before

    def _read(self) -> int | None:
        if self._path is None:
            return None
        try:
            return oom_kills(self._path.read_text())
        except OSError:
            return None


def _counter(root: Path) -> Path:
    """Of this process's own cgroup (version 2) where it has one, else of the whole machine."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                events = root / "sys/fs/cgroup" / line[3:].strip("/") / "memory.events"
                if events.exists():
                    return events
    return root / "proc/vmstat"
