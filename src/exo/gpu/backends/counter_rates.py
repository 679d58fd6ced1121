"""How fast counters move between two readings; a step back is a reset, never a rate."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.vocabulary.errors import ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Callable

# Drivers refresh their counters about every millisecond: over less than this, a step is noise.
SHORTEST_SECONDS = 0.01


class Rate(NamedTuple):
    """Growth ``per_second``, over the last ``seconds``."""

    per_second: float
    seconds: float


class _Point(NamedTuple):
    value: float
    seconds: float
    rate: Rate | None


class CounterRates:
    """The last value of each counter; ``clock`` gives monotonic seconds. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._points: dict[tuple[str, ...], _Point] = {}

    def rate(
        self,
        key: tuple[str, ...],
        value: float,
        *,
        at_seconds: float | None = None,
        longest_seconds: float = math.inf,
    ) -> Rate:
        """How fast the counter grew since it was last told.

        ``at_seconds`` is when the value was read, by default now. Told again within
        :data:`SHORTEST_SECONDS`, the rate before stands.

        Raises:
            ReadingMissing: for the first reading, after a reset, and after more than
                ``longest_seconds`` of which a mean would say nothing of the present.

        """
        with self._lock:
            now = self._clock() if at_seconds is None else at_seconds
            before = self._points.get(key)
            if before is None:
                self._points[key] = _Point(value, now, None)
                raise ReadingMissing("a rate needs two readings; this was the first")
            if value < before.value:
                self._points[key] = _Point(value, now, None)
                raise ReadingMissing("the counter stepped back: the driver has reset it")
            elapsed = now - before.seconds
            if elapsed > longest_seconds:
                self._points[key] = _Point(value, now, None)
                raise ReadingMissing(f"the counter was last read {elapsed:.0f} s ago: a gap")
            if elapsed < SHORTEST_SECONDS:
                if before.rate is None:
                    raise ReadingMissing("two readings were too close together for a rate")
                return before.rate
            rate = Rate((value - before.value) / elapsed, elapsed)
            self._points[key] = _Point(value, now, rate)
            return rate

    def drop(self, key: tuple[str, ...]) -> None:
        """Forget one counter; harmless for one never told."""
        with self._lock:
            self._points.pop(key, None)

    def forget(self, prefix: tuple[str, ...], *, but: set[tuple[str, ...]]) -> None:
        """Drop the counters whose key begins with ``prefix``, except those named."""
        with self._lock:
            self._points = {
                key: point
                for key, point in self._points.items()
                if key[: len(prefix)] != prefix or key in but
            }
