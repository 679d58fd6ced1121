"""One thread that looks after all slots of this process, so that no wait of theirs is endless."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Protocol


class Watched(Protocol):
    """Something to be looked at now and then."""

    def check(self, now: float) -> float:
        """Do what is due, and say when to look again, both on the monotonic clock."""
        ...


class Watchdog:
    """Looks at each of those it watches when they are due; its thread starts with the first."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._changed = threading.Condition()
        self._next = math.inf
        self._process = 0

    def add(self, watched: Watched) -> None:
        """Watch this one too."""
        with self._changed:
            self._watched.add(watched)
            if self._process != os.getpid():  # the first one, or a fork took no thread along
                self._process, self._next = os.getpid(), math.inf
                threading.Thread(target=self._run, name="exo-gpu-watchdog", daemon=True).start()

    def remove(self, watched: Watched) -> None:
        """Watch this one no more; harmless twice."""
        with self._changed:
            self._watched.discard(watched)

    def hurry(self, due: float) -> None:
        """Look no later than then; free of cost where that is so anyway."""
        if due < self._next:
            with self._changed:
                self._next = min(self._next, due)
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                while now < self._next:
                    wait = None if math.isinf(self._next) else self._next - now
                    self._changed.wait(wait)
                    now = time.monotonic()
                self._next = math.inf
                watched = tuple(self._watched)
            self.hurry(min((one.check(now) for one in watched), default=math.inf))


WATCHDOG = Watchdog()
"""Of this process; it does nothing before the first slot."""
