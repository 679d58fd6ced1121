"""How fast an agent reaches the others: a small probe, rarely, and never under load."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from exo.gpu.vocabulary.cluster import RouteFigures
from exo.gpu.vocabulary.errors import NodeLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.cluster.roads import Road

logger = logging.getLogger("exo.gpu.nodes.cluster.survey")

# Ways between machines change when somebody moves a cable.
REPEAT_SECONDS = 600.0

# Enough for a median of latency, and for the transfer to outlast it on all but slow networks.
PINGS = 7
PROBE_BYTES = 8 * 1024 * 1024
ANSWER_SECONDS = 10.0


class Surveyor:
    """Measures the ways from one node, one at a time; ``reach`` gives the way to an agent."""

    def __init__(
        self, node: str, reach: Callable[[str], Road], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._node = node
        self._reach = reach
        self._clock = clock
        self._known: dict[str, tuple[float, RouteFigures]] = {}
        self._turn = threading.Lock()

    def routes(self, targets: Sequence[str], *, busy: bool) -> tuple[RouteFigures, ...]:
        """What is known of the ways to these nodes; measured now where it is old, unless busy."""
        with self._turn:
            for target in targets:
                at, _ = self._known.get(target, (-REPEAT_SECONDS, None))
                if not busy and target != self._node and self._clock() - at >= REPEAT_SECONDS:
                    self._measure(target)
            return tuple(self._known[one][1] for one in targets if one in self._known)

    def _measure(self, target: str) -> None:
        try:
            road = self._reach(target)
            if road.ask("is_busy", timeout_seconds=ANSWER_SECONDS):
                return
            pings = [_seconds(road, "pause") for _ in range(PINGS)]
            # Not zeros: what is all alike may be sent as less than it is.
            probe = np.frombuffer(np.random.default_rng(0).bytes(PROBE_BYTES), np.uint8)
            _seconds(road, "take_bytes", probe)
            taken = min(_seconds(road, "take_bytes", probe) for _ in range(2))
        except NodeLost as error:
            logger.debug("the way to %s is not measured: %s", target, error)
            return
        latency = statistics.median(pings)
        figures = RouteFigures(
            source=self._node,
            target=target,
            latency_seconds=latency,
            bandwidth_bytes_per_second=PROBE_BYTES / max(taken - latency, 1e-6),
            measured_at=time.time(),
        )
        self._known[target] = (self._clock(), figures)


def _seconds(road: Road, call: str, *arguments: object) -> float:
    begun = time.perf_counter()
    road.ask(call, *arguments, timeout_seconds=ANSWER_SECONDS)
    return time.perf_counter() - begun
