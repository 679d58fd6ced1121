"""What ``exo-gpu top`` shows: frames of a whole machine, taken where nobody waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol

import msgspec

from exo.gpu.coordination.monitor import Monitor
from exo.gpu.coordination.processes import join
from exo.gpu.coordination.watch import WatchedNode
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.vocabulary.errors import ExoGpuError, StoreError
from exo.gpu.vocabulary.metrics import SERIES, GPUMetrics
from exo.gpu.vocabulary.process import DeviceUser, ProcessList
from exo.gpu.vocabulary.snapshot import Snapshot

logger = logging.getLogger("exo.gpu.coordination.top_source")

Series = Mapping[str, Sequence[float | None]]
"""Metric -> its values at the frame's cadence, oldest first, None where there is no value."""

# As quick as most drivers' averages.
CADENCE_SECONDS = 1.0

# The first samples come within this, as a rule: nobody looks at an empty table for longer.
_FIRST_SECONDS = 0.3

# Lists of processes are dearer than samples, and change less often.
_LISTS_SECONDS = 2.0

# As far back as a wide screen has columns for.
HISTORY_SAMPLES = 300

# So many cadences without a frame are worth a word.
_PATIENCE_CADENCES = 3

# Whoever quits waits no longer for a driver.
_STOP_SECONDS = 1.0


class TopFrame(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown at one moment; ``taken_at`` (Unix seconds) is None before any."""

    taken_at: float | None = None
    snapshot: Snapshot = Snapshot(())
    histories: Mapping[str, Series] = MappingProxyType({})
    """By device id; a device that is not here has no history."""
    users: tuple[DeviceUser, ...] = ()
    untold: Mapping[str, str] = MappingProxyType({})
    """Why the processes of a device are not known, by its id."""
    notes: tuple[str, ...] = ()
    """What else there is to say of the whole, such as why leases are not shown."""
    cadence_seconds: float = CADENCE_SECONDS
    """How far apart the values of a history are."""


class TopSource(Protocol):
    """Where frames come from."""

    def frame(self) -> TopFrame:
        """The newest frame; the same object until there is news. Returns at once."""
        ...


class Watched(Protocol):
    """What frames are taken of."""

    @property
    def node(self) -> WatchedNode:
        """Who is asked for processes, and why there is no device."""
        ...

    @property
    def collector(self) -> TelemetryCollector:
        """The samples of the last minutes."""
        ...

    def snapshot(self, *, leases: bool = True) -> Snapshot:
        """All devices as they are known now."""
        ...


class LocalTopSource:
    """Frames of a monitor of this machine, on a daemon thread; use it in a ``with`` block.

    A driver that hangs costs its device alone. Should the whole node hang all the same,
    :meth:`frame` says for how long there has been no news, and leaving the block waits a second
    for it at most.
    """

    def __init__(
        self,
        open_node: Callable[[], LocalNode] = LocalNode,
        *,
        cadence_seconds: float = CADENCE_SECONDS,
        history_samples: int = HISTORY_SAMPLES,
    ) -> None:
        self._open_node = open_node
        self._cadence_seconds = cadence_seconds
        self._history_samples = history_samples
        self._lists: tuple[ProcessList, ...] = ()
        self._listed_at = -_LISTS_SECONDS
        self._frame = TopFrame(notes=("looking for devices",), cadence_seconds=cadence_seconds)
        self._taken_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exo-gpu-top", daemon=True)

    def __enter__(self) -> LocalTopSource:
        """Begin to take frames."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; a call that hangs is left behind."""
        self._ended.set()
        self._thread.join(_STOP_SECONDS)

    def frame(self) -> TopFrame:
        """The newest frame, with a word where it has been the newest for too long."""
        frame = self._frame
        quiet_seconds = time.monotonic() - self._taken_at
        if quiet_seconds <= _PATIENCE_CADENCES * self._cadence_seconds:
            return frame
        note = f"no news for {quiet_seconds:.0f} s: a driver or the lease store does not answer"
        return msgspec.structs.replace(frame, notes=(*frame.notes, note))

    @contextmanager
    def _watched(self) -> Generator[Watched]:
        with (
            self._open_node() as node,
            Monitor(
                node, cadence_seconds=self._cadence_seconds, max_history=self._history_samples
            ) as monitor,
        ):
            yield monitor

    def _run(self) -> None:
        with self._watched() as monitor:
            pause_seconds = min(_FIRST_SECONDS, self._cadence_seconds)
            due = time.monotonic()
            while not self._ended.wait(max(0.0, due - time.monotonic())):
                try:
                    self._frame = self._take(monitor)
                except (ExoGpuError, OSError) as error:
                    logger.warning("no frame: %s", error)
                    self._frame = msgspec.structs.replace(self._frame, notes=(str(error),))
                self._taken_at = time.monotonic()
                due = max(due + pause_seconds, self._taken_at)
                pause_seconds = self._cadence_seconds

    def _take(self, monitor: Watched) -> TopFrame:
        notes: list[str] = []
        try:
            snapshot = monitor.snapshot()
        except StoreError as error:
            notes.append(f"leases and cordons are not shown: {error}")
            snapshot = monitor.snapshot(leases=False)
        if not snapshot.devices:
            notes += [f"{one.backend}: {one.reason}" for one in monitor.node.inventory().findings]
        if time.monotonic() >= self._listed_at + _LISTS_SECONDS:
            self._lists = monitor.node.processes()
            self._listed_at = time.monotonic()
        everybody = join(snapshot, self._lists)
        taken_at = time.time()
        return TopFrame(
            taken_at=taken_at,
            snapshot=snapshot,
            histories=_Histories(monitor.collector, snapshot, taken_at, self._cadence_seconds),
            users=everybody.users,
            untold=everybody.untold,
            notes=tuple(notes),
            cadence_seconds=self._cadence_seconds,
        )


class _Histories(Mapping[str, Series]):
    """The histories up to one moment; each is made when it is looked at, which few are."""

    def __init__(
        self,
        collector: TelemetryCollector,
        snapshot: Snapshot,
        until: float,
        cadence_seconds: float,
    ) -> None:
        self._collector = collector
        self._ids = tuple(state.device.device_id for state in snapshot.devices)
        self._until = until
        self._cadence_seconds = cadence_seconds

    def __getitem__(self, device_id: str) -> Series:
        if device_id not in self._ids:
            raise KeyError(device_id)
        samples = [
            sample
            for sample in self._collector.get_metrics_history(device_id)
            if sample.timestamp <= self._until
        ]
        return series(samples, until=self._until, cadence_seconds=self._cadence_seconds)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def series(samples: Sequence[GPUMetrics], *, until: float, cadence_seconds: float) -> Series:
    """The values of samples, oldest first, with None for each cadence in which none came.

    ``until`` is the end of the last cadence, in Unix seconds.
    """
    placed: list[GPUMetrics | None] = []
    ends = (*(sample.timestamp for sample in samples), until)[1:]
    for sample, end in zip(samples, ends, strict=True):
        missed = max(0, round((end - sample.timestamp) / cadence_seconds) - 1)
        placed += [sample, *[None] * min(missed, HISTORY_SAMPLES)]
    placed = placed[-HISTORY_SAMPLES:]
    return {
        metric: [None if sample is None else getattr(sample, metric) for sample in placed]
        for metric in SERIES
    }
