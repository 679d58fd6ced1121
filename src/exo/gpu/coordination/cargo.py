"""What is sent to a slot at once: jobs that belong together, or a span of a map."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.execution.payloads import dump_parcel
from exo.gpu.vocabulary.job import Attempt, Outcome, SlotChunk
from exo.gpu.vocabulary.parcel import Batch, Parcel

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.map_run import MapRun
    from exo.gpu.vocabulary.device import GPUDevice


class Function(msgspec.Struct, frozen=True, eq=False):
    """A function that many items share: it is sent to a slot once."""

    number: int
    payload: bytes | Parcel


class Job(msgspec.Struct, eq=False):
    """One item on its way: what to send, whom to tell, and the tries so far.

    ``begin`` is asked once, right before the item is first sent, and may withdraw it by
    returning False. ``end`` is told exactly once, unless it was withdrawn.
    """

    item: int
    begin: Callable[[], bool]
    end: Callable[[Outcome, Job], None]
    payload: bytes | Parcel = b""
    is_single: bool = False
    """Whether the payload is the function's only argument, and not the tuple of all."""
    kind: Hashable = None
    """What tells it from items that take another time, such as those of another function."""
    function: Function | None = None
    command: str | None = None
    device_id: str | None = None
    """At its first try only a slot of this device takes it."""
    chunk: int | None = None
    """How many of its kind a slot takes at once; None: the scheduler decides."""
    deadline_seconds: float | None = None
    """How long each try may take."""
    on_chunk: Callable[[SlotChunk, Callable[[int], None]], None] | None = None
    """The function yields: hears each chunk, with what lets the function be so many more ahead."""
    attempts: tuple[Attempt, ...] = ()
    begun: bool = False
    chunks: int = 0
    """How many were heard; with the first one, there is no other try."""
    cancelled: bool = False
    failure: Outcome | None = None
    """Of the last try, where there is to be another one."""
    memory_bytes: int | None = None
    """What a further try asks for; None: as much as the first one."""
    without_devices: tuple[str, ...] = ()
    """Where a further try does not go."""


class Span:
    """Items of a map that follow one another, numbered in a row of their own."""

    __slots__ = ("batch", "items", "places", "run", "values")

    def __init__(
        self, run: MapRun, items: range, places: Sequence[int], values: Sequence[Any], batch: Batch
    ) -> None:
        """``places`` are the items' numbers in the map; ``values`` what the batch was made of."""
        self.run = run
        self.items = items
        self.places = places
        self.values = values
        self.batch = batch

    def job(self, item: int) -> Job:
        """One of its items, to be judged, sent or ended alone."""
        number = item - self.items.start
        parcels = self.batch.parcels
        payload = parcels[number] if parcels else dump_parcel(self.values[number], "an item")
        return Job(
            item=item,
            begin=lambda: True,
            end=self.run.ender(self.places[number]),
            payload=payload,
            is_single=self.run.is_single,
            kind=self.run.function.number,
            function=self.run.function,
            deadline_seconds=self.run.deadline_seconds,
            begun=True,
        )

    def give_back(self, items: Sequence[int]) -> None:
        """These items, in a row, never began."""
        first = items[0] - self.items.start
        part = slice(first, first + len(items))
        self.run.give_back(self.places[part], self.values[part])


class Sent:
    """A piece of work in the hands of a slot."""

    __slots__ = (
        "count",
        "heard_at",
        "is_alone",
        "items",
        "kind",
        "recalled",
        "reported",
        "sent_at",
        "span",
        "work_id",
    )

    def __init__(
        self, work_id: int, items: Sequence[int], kind: Hashable, span: Span | None
    ) -> None:
        self.work_id = work_id
        self.items = items
        self.kind = kind
        self.span = span
        self.count = len(items)
        """How many it has, less those that were taken back."""
        self.is_alone = self.count == 1
        self.reported = 0
        self.recalled = False  # whether it was asked to give back what waits
        self.sent_at = self.heard_at = time.perf_counter()

    def heard(self, count: int) -> None:
        """So many more were reported."""
        self.reported += count
        self.heard_at = time.perf_counter()

    @property
    def left(self) -> int:
        """How many have not been reported."""
        return self.count - self.reported


class Slot:
    """A slot of the node, and what was sent to it: what it is at, and what comes next."""

    def __init__(
        self,
        number: int,
        device: GPUDevice,
        memory_bytes: int | None = None,
        *,
        extra: bool = False,
    ) -> None:
        self.number = number
        self.device = device
        self.memory_bytes = memory_bytes
        self.extra = extra  # opened for items that need more than the others
        self.retiring = False  # it gets no more work, and is closed once it has none
        self.ready = False  # once its first process is
        self.works: deque[Sent] = deque()
        self.idle_at = time.perf_counter()

    @property
    def busy(self) -> bool:
        """Whether it has work, or no process yet."""
        return bool(self.works) or not self.ready

    @property
    def waiting(self) -> int:
        """How many items it has not begun, as far as is known, and was not asked to give back."""
        waits = [0 if sent.recalled else sent.left for sent in self.works]
        return max(0, sum(waits) - (not self.works[0].recalled)) if waits else 0


class Numbers:
    """Numbers for items, each given once; from any thread."""

    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def take(self, count: int = 1) -> int:
        """The first of so many new ones in a row."""
        with self._lock:
            first = self._next
            self._next += count
            return first


def batch_of(jobs: Sequence[Job]) -> Batch:
    """What these jobs send."""
    payloads = [job.payload for job in jobs]
    return Batch(
        len(jobs),
        parcels=tuple(
            one if isinstance(one, Parcel) else Parcel((one,), by_value=True) for one in payloads
        ),
    )
