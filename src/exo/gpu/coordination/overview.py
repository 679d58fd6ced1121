"""A whole machine at one moment, taken over and over on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.coordination.job_board import JobBoard
from exo.gpu.coordination.processes import join
from exo.gpu.nodes.foresight import foresight
from exo.gpu.nodes.policies import policies_for
from exo.gpu.scheduling.selector import select
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.vocabulary.errors import ExoGpuError
from exo.gpu.vocabulary.health import DeviceFault, HealthEvent
from exo.gpu.vocabulary.inventory import DeviceChange
from exo.gpu.vocabulary.process import Occupancy
from exo.gpu.vocabulary.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.coordination.jobs import JobSummary
    from exo.gpu.coordination.watch import Watch
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.cluster import NodeStanding
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import MissingDevice
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.process import ProcessList
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger("exo.gpu.coordination.overview")

CADENCE_SECONDS = 1.0

RECENT_VALUES = 120
"""How many values of each device's load are kept for a sparkline, one a cadence."""

RECENT_EVENTS = 500
"""How many changes of health, faults, and devices that came or went are kept in memory."""

# Who holds what is dearer to learn than a sample, and changes less often.
_LISTS_SECONDS = 2.0

# What is dear is done in a tenth of the time at most.
_DEAR_SHARE = 10.0

_STOP_SECONDS = 1.0

# A sample may come just after an overview, and the next one just before: that is no gap.
_LATE_CADENCES = 3.0


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known at one moment; ``taken_at`` (Unix seconds) is None before the first."""

    taken_at: float | None = None
    snapshot: Snapshot = Snapshot(())
    missing: tuple[MissingDevice, ...] = ()
    failures: Mapping[str, str] = MappingProxyType({})
    """Why a device gave no sample the last time it was asked, by its id."""
    nodes: tuple[NodeStanding, ...] = ()
    """Every node that is or was in the cluster; none where one machine is shown."""
    leases: tuple[Lease, ...] = ()
    line: tuple[tuple[Waiter, Turn], ...] = ()
    occupancy: Occupancy = Occupancy()
    jobs: tuple[JobSummary, ...] = ()
    job_problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What else there is to say of the whole, such as why leases are not known."""


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What came since the last overview, in order."""

    overview: Overview
    samples: tuple[GPUMetrics, ...] = ()
    """The newest of each device that gave one."""
    events: tuple[RecentEvent, ...] = ()


class RecentEvent(msgspec.Struct, frozen=True):
    """A change of health, a fault, or a device that came or went; ``at`` is Unix seconds."""

    kind: str
    device_id: str
    at: float
    fields: dict[str, Any]


class Overseer:
    """Takes an overview every ``cadence_seconds`` of a watch that runs; use it in a ``with`` block.

    A driver that hangs costs its device alone. Should the whole node hang, the newest overview
    stays, and :meth:`quiet_seconds` says for how long.
    """

    def __init__(
        self,
        watch: Watch,
        environ: Mapping[str, str],
        *,
        cadence_seconds: float = CADENCE_SECONDS,
    ) -> None:
        self.watch = watch
        self.environ = environ
        self.cadence_seconds = cadence_seconds
        self._jobs = JobBoard(environ)
        self._listening = watch.subscribe()
        self._recent: dict[str, deque[float | None]] = {}
        self._events: deque[RecentEvent] = deque(maxlen=RECENT_EVENTS)
        self._failures: dict[str, str] = {}
        self._described: dict[str, tuple[GPUDevice, tuple[str, ...]]] = {}
        self._lists: tuple[ProcessList, ...] = ()
        self._lists_due = 0.0
        self._overview = Overview(notes=("looking for devices",))
        self._taken = time.monotonic()
        self._sinks: list[Callable[[News], None]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exo-gpu-overview", daemon=True)

    def __enter__(self) -> Overseer:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; a call that hangs is left behind."""
        self._ended.set()
        self._listening.close()
        self._thread.join(_STOP_SECONDS)

    @property
    def overview(self) -> Overview:
        """The newest overview."""
        return self._overview

    @property
    def quiet_seconds(self) -> float:
        """How old the newest overview is."""
        return time.monotonic() - self._taken

    def tell(self, sink: Callable[[News], None]) -> None:
        """Hand each overview to ``sink`` from now on, on this thread; it must not block."""
        self._sinks = [*self._sinks, sink]

    def tell_no_more(self, sink: Callable[[News], None]) -> None:
        """Forget a sink; one last call may be under way."""
        self._sinks = [one for one in self._sinks if one != sink]

    def recent(self) -> dict[str, list[float | None]]:
        """The load of each device in percent over the last minutes, oldest first, one a cadence."""
        return {device_id: list(values) for device_id, values in tuple(self._recent.items())}

    def events(self) -> tuple[RecentEvent, ...]:
        """The newest events that were heard, oldest first."""
        return tuple(self._events)

    def explain(self, request: Request) -> tuple[Decision, Snapshot]:
        """Answer a request as things stand, as ``exo-gpu select`` does, and take nothing.

        Raises:
            UnknownName: for a policy that is not known, with the near spelling.
            StoreError: when leases cannot be read.

        """
        snapshot = self.watch.node.snapshot(others=request.exclusive)
        devices = [state.device for state in snapshot.devices]
        snapshot = foresight(request, devices, self.environ)(snapshot)
        return select(snapshot, request, policies=policies_for(request)), snapshot

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            try:
                news = self._take()
            except (ExoGpuError, OSError) as error:
                logger.warning("no overview: %s", error)
                self._overview = msgspec.structs.replace(self._overview, notes=(str(error),))
            else:
                self._overview = news.overview
                self._taken = time.monotonic()
                for sink in self._sinks:
                    sink(news)
            due = max(due + self.cadence_seconds, time.monotonic())

    def _take(self) -> News:
        notes: list[str] = []
        samples, events = self._drain()
        snapshot = self._snapshot(notes)
        if not snapshot.devices:
            found = self.watch.node.inventory().findings
            notes += [f"{one.backend}: {one.reason}" for one in found if one.reason]
        before = self._overview
        leases, line, occupancy = before.leases, before.line, before.occupancy
        if time.monotonic() >= self._lists_due:
            began = time.monotonic()
            leases, line = self._who(notes)
            self._lists = self.watch.node.processes()
            occupancy = join(snapshot, self._lists)
            took = time.monotonic() - began
            self._lists_due = began + max(_LISTS_SECONDS, _DEAR_SHARE * took)
        jobs, problems = self._jobs.look()
        nodes = self._nodes(notes)
        self._describe(snapshot)
        self._remember(snapshot, samples)
        overview = Overview(
            taken_at=time.time(),
            snapshot=snapshot,
            missing=self.watch.missing,
            failures=dict(self._failures),
            nodes=nodes,
            leases=leases,
            line=line,
            occupancy=occupancy,
            jobs=jobs,
            job_problems=problems,
            notes=tuple(dict.fromkeys(notes)),
        )
        return News(overview=overview, samples=samples, events=events)

    def _snapshot(self, notes: list[str]) -> Snapshot:
        try:
            return self.watch.snapshot()
        except ExoGpuError as error:
            notes.append(f"leases and cordons are not shown: {error}")
            return self.watch.snapshot(leases=False)

    def _who(self, notes: list[str]) -> tuple[tuple[Lease, ...], tuple[tuple[Waiter, Turn], ...]]:
        try:
            return self.watch.node.leases(), self.watch.node.line()
        except ExoGpuError as error:
            notes.append(f"leases and cordons are not shown: {error}")
            return (), ()

    def _nodes(self, notes: list[str]) -> tuple[NodeStanding, ...]:
        """The nodes of a cluster, and what is wrong with it and them."""
        nodes, problem = self.watch.nodes, self.watch.problem
        notes += [problem] * bool(problem)
        notes += [f"node {one.node} is lost: {one.reason}" for one in nodes if not one.alive]
        return nodes

    def _drain(self) -> tuple[tuple[GPUMetrics, ...], tuple[RecentEvent, ...]]:
        """Everything heard since the last time."""
        samples: dict[str, GPUMetrics] = {}
        events: list[RecentEvent] = []
        while (event := self._listening.get(0)) is not None:
            if not isinstance(event, Observation):
                events.append(_as_recent(event))
            elif event.sample is None:
                self._failures[event.device_id] = event.failure
            else:
                self._failures.pop(event.device_id, None)
                samples[event.device_id] = event.sample
        self._events.extend(events)
        return tuple(samples.values()), tuple(events)

    def _describe(self, snapshot: Snapshot) -> None:
        """Let the samples be grouped by what their devices are."""
        for state in snapshot.devices:
            told = state.device, state.settings.labels
            if self._described.get(state.device.device_id) != told:
                self._described[state.device.device_id] = told
                pairs = (label.partition("=") for label in state.settings.labels)
                labels = {name: value or name for name, _, value in pairs}
                self.watch.collector.describe(state.device, labels=labels)

    def _remember(self, snapshot: Snapshot, samples: Sequence[GPUMetrics]) -> None:
        """One more value for every device that is here, None where it gave none of late."""
        fresh = {one.device_id for one in samples}
        here = [state.device.device_id for state in snapshot.devices]
        for state in snapshot.devices:
            device_id, age, load = state.device.device_id, state.sample_age_seconds, None
            late = age is None or age > _LATE_CADENCES * self.cadence_seconds
            if state.sample is not None and (device_id in fresh or not late):
                load = state.sample.compute_utilization_percent
            values = self._recent.setdefault(device_id, deque(maxlen=RECENT_VALUES))
            values.append(load)
        for device_id in self._recent.keys() - set(here):
            del self._recent[device_id]


def as_recent(kind: str, device_id: str, at: float, fields: Mapping[str, Any]) -> RecentEvent:
    """An event whose fields do not say again what it is about and when it was."""
    own = {name: value for name, value in fields.items() if name not in {"device_id", "at"}}
    return RecentEvent(kind, device_id, at, own)


def _as_recent(event: HealthEvent | DeviceFault | DeviceChange) -> RecentEvent:
    if isinstance(event, DeviceChange):
        fields = {"change": event.kind.value, "name": event.device.name}
        return as_recent("change", event.device.device_id, time.time(), fields)
    kind = "health" if isinstance(event, HealthEvent) else "fault"
    return as_recent(kind, event.device_id, event.at, event.to_dict())
