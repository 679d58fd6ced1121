"""All devices of all nodes, kept up to date by batches, in the order of decisions."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.nodes.cluster.batches import (
    DECODER,
    leases_of_node,
    names_of_node,
    sample_of,
)
from exo.gpu.scheduling.fast import FastSelector
from exo.gpu.scheduling.policies import POLICIES
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.decision import Decision
from exo.gpu.vocabulary.links import Link, Route
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.scheduling.policies import Policy
    from exo.gpu.vocabulary.cluster import NodeBatch
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.request import Request

# A row is worked out anew when what decides has moved by more than this since it was last, or when
# it is as old as that: what a node has moved less, its agent knows better anyway.
MOVED_PERCENT = 5.0
MOVED_CELSIUS = 2.0
MOVED_MEMORY_PART = 1 / 256
REFRESH_SECONDS = 10.0

# Up to so many devices a decision comes with its ranking and all reasons.
FULL_DECISION_DEVICES = 256


class _Line(msgspec.Struct):
    """What the table last worked out of one device."""

    memory: float
    busy: float
    celsius: float
    at: float


class _Known(msgspec.Struct):
    """One node: its newest batch, the seldom changing part, and when it came."""

    batch: NodeBatch
    states: tuple[DeviceState, ...]
    remarks: tuple[dict[str, Any], ...]
    links: tuple[Link, ...]
    unseen: tuple[Lease, ...]
    routes: tuple[Route, ...]
    lines: list[_Line]
    changed_number: int
    received_at: float


class ClusterTable:
    """The devices of a cluster; calls from several threads are safe. ``clock`` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._nodes: dict[str, _Known] = {}
        self._selector = FastSelector()
        self.roster_version = 0
        """Rises when devices have come, gone or changed."""

    def __len__(self) -> int:
        return len(self._selector)

    def take(self, encoded: bytes, *, whose: str | None = None) -> bool:
        """Take a batch in, of the node that it names or that is named; False for an older one."""
        batch = DECODER.decode(encoded)
        node = whose or batch.node
        now = self._clock()
        with self._lock:
            known = self._nodes.get(node)
            if known is not None and batch.number < known.batch.number:
                return False
            if batch.states is None:
                if known is None or known.changed_number != batch.changed_number:
                    return False  # what it builds on was never heard
                known.batch, known.received_at = batch, now
                self._put(known, now, all_of_them=False)
                return True
            self._nodes[node] = fresh = _Known(
                batch,
                names_of_node(node, batch.states),
                batch.remarks,
                tuple(_link_of_node(node, link) for link in batch.links),
                leases_of_node(node, batch.unseen),
                batch.routes,
                [_Line(0, 0, 0, 0)] * len(batch.states),
                batch.changed_number,
                now,
            )
            here = {state.device.device_id: state.device for state in fresh.states}
            before = (
                {state.device.device_id: state.device for state in known.states} if known else {}
            )
            for device_id in before.keys() - here.keys():
                self._selector.remove(device_id)
            self._put(fresh, now, all_of_them=True)
            if here != before:
                self.roster_version += 1
            return True

    def forget(self, node: str) -> None:
        """The devices of a node are gone; harmless for one that is not there."""
        with self._lock:
            known = self._nodes.pop(node, None)
            for state in () if known is None else known.states:
                self._selector.remove(state.device.device_id)
            self.roster_version += 1

    def choose(self, request: Request, policies: Mapping[str, Policy]) -> tuple[str, ...]:
        """The ids that a request gets, or none; the reasons are :meth:`decide`'s.

        Several devices are chosen by the ways between them, which takes the longer way.
        """
        if request.policy in POLICIES and request.count == 1:
            with self._lock:
                return self._selector.choose(request, now=self._clock()).chosen
        return self.decide(request, policies).chosen

    def decide(self, request: Request, policies: Mapping[str, Policy]) -> Decision:
        """The same with the ranking and every reason."""
        return select(self.snapshot(), request, policies=policies)

    def snapshot(self) -> Snapshot:
        """All devices, by what was heard of them last."""
        now = self._clock()
        with self._lock:
            nodes = sorted(self._nodes.items())
            return Snapshot(
                tuple(
                    _state(known, place, now)
                    for _, known in nodes
                    for place in range(len(known.states))
                ),
                version=self._selector.version,
                links=tuple(link for _, known in nodes for link in known.links),
                routes=tuple(route for _, known in nodes for route in known.routes),
                unseen=tuple(lease for _, known in nodes for lease in known.unseen),
            )

    def _put(self, known: _Known, now: float, *, all_of_them: bool) -> None:
        """Bring the rows up to date whose figures have moved, and those not heard of for long."""
        readings, none = known.batch.readings, (None,) * len(known.lines)
        used = readings.get("memory_used_bytes", none)
        total = readings.get("memory_total_bytes", none)
        busy = readings.get("compute_utilization_percent", none)
        celsius = readings.get("temperature_celsius", none)
        for place, line in enumerate(known.lines):
            memory, load, heat = used[place] or 0, busy[place] or 0, celsius[place] or 0
            if (
                all_of_them
                or now - line.at > REFRESH_SECONDS
                or abs(memory - line.memory) > (total[place] or 0) * MOVED_MEMORY_PART
                or abs(load - line.busy) > MOVED_PERCENT
                or abs(heat - line.celsius) > MOVED_CELSIUS
            ):
                known.lines[place] = _Line(memory, load, heat, now)
                self._selector.update(_state(known, place, now), now=now)


def _state(known: _Known, place: int, now: float) -> DeviceState:
    state = known.states[place]
    age = known.batch.ages_seconds[place]
    sample = sample_of(state.device.device_id, place, known.batch, known.remarks[place])
    return msgspec.structs.replace(
        state,
        sample=sample,
        sample_age_seconds=None if age is None else age + now - known.received_at,
    )


def _link_of_node(node: str, link: Link) -> Link:
    return msgspec.structs.replace(
        link, source=f"{node}/{link.source}", target=f"{node}/{link.target}"
    )
