"""How fast an agent reaches the others: a small probe, rarely, and never under load."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from exo.gpu.vocabulary.errors import NodeLost
from exo.gpu.vocabulary.links import Route

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

# How often is looked whether nobody works, and whether a measurement is old.
LOOK_SECONDS = 15.0

# From one node, unasked: of a hundred nodes each, that is a minute of probes in ten.
MOST_TARGETS = 32


class Surveyor:
    """Measures the ways from one node, one at a time, on a thread of its own.

    ``reach`` gives the way to an agent, and ``is_busy`` says whether anybody works here.
    """

    def __init__(
        self,
        node: str,
        reach: Callable[[str], Road],
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._reach = reach
        self._is_busy = is_busy
        self._clock = clock
        self._known: dict[str, Route] = {}
        self._tried: dict[str, float] = {}
        self._targets: tuple[str, ...] = ()
        self._turn = threading.Lock()
        self._news = threading.Event()
        self._closed = False
        threading.Thread(target=self._serve, name="exo-gpu-survey", daemon=True).start()

    @property
    def known(self) -> tuple[Route, ...]:
        """What is known of the ways from here, by name of the node they lead to."""
        return tuple(route for _, route in sorted(self._known.items()))

    def aim(self, targets: Sequence[str]) -> None:
        """Measure the ways to these nodes from now on; of many, those that follow in their order.

        With so many each, all nodes are still joined to one another by ways that are known.
        """
        order = sorted({*targets, self._node})
        place = order.index(self._node)
        others = [*order[place + 1 :], *order[:place]]
        self._targets = tuple(others[:MOST_TARGETS])
        self._news.set()

    def routes(self, targets: Sequence[str]) -> tuple[Route, ...]:
        """What is known of the ways to these nodes; measured now where it is old, unless busy."""
        for target in targets:
            self._measure_if_old(target)
        return tuple(self._known[one] for one in targets if one in self._known)

    def close(self) -> None:
        """Measure no more; harmless twice."""
        self._closed = True
        self._news.set()

    def _serve(self) -> None:
        while not self._closed:
            self._news.wait(LOOK_SECONDS)
            self._news.clear()
            for target in self._targets:
                if not self._closed:
                    self._measure_if_old(target)

    def _measure_if_old(self, target: str) -> None:
        with self._turn:
            old = self._clock() - self._tried.get(target, -REPEAT_SECONDS) >= REPEAT_SECONDS
            if old and target != self._node and not self._is_busy() and self._measure(target):
                self._tried[target] = self._clock()

    def _measure(self, target: str) -> bool:
        """Whether it was tried: not where somebody works there."""
        try:
            road = self._reach(target)
            if road.ask("is_busy", timeout_seconds=ANSWER_SECONDS):
                return False
            pings = [_seconds(road, "pause") for _ in range(PINGS)]
            # Not zeros: what is all alike may be sent as less than it is.
            probe = np.frombuffer(np.random.default_rng(0).bytes(PROBE_BYTES), np.uint8)
            _seconds(road, "take_bytes", probe)
            taken = min(_seconds(road, "take_bytes", probe) for _ in range(2))
        except NodeLost as error:
            logger.debug("the way to %s is not measured: %s", target, error)
            return True
        latency = statistics.median(pings)
        self._known[target] = Route(
            source=self._node,
            target=target,
            latency_seconds=latency,
            bandwidth_bytes_per_second=PROBE_BYTES / max(taken - latency, 1e-6),
            measured_at=time.time(),
        )
        return True


def _seconds(road: Road, call: str, *arguments: object) -> float:
    begun = time.perf_counter()
    road.ask(call, *arguments, timeout_seconds=ANSWER_SECONDS)
    return time.perf_counter() - begun
