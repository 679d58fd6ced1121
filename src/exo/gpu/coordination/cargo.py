"""What is sent to a slot at once: jobs that belong together, or a span of a map."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from exo.gpu.coordination.items import Job
from exo.gpu.execution.payloads import dump_parcel
from exo.gpu.vocabulary.parcel import Batch, Parcel

if TYPE_CHECKING:
    from exo.gpu.coordination.map_run import Cut, MapRun
    from exo.gpu.execution.successes import Successes
    from exo.gpu.vocabulary.device import GPUDevice


class Span:
    """Items of a map that follow one another, numbered in a row of their own."""

    __slots__ = ("batch", "items", "places", "run", "values")

    def __init__(self, run: MapRun, first: int, cut: Cut) -> None:
        """``first`` is the number of the first item, as the dispatcher counts."""
        self.run = run
        self.items = range(first, first + len(cut.places))
        self.places, self.values, self.batch = cut

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

    def succeeded(self, run: Successes, lane: tuple[int, str]) -> None:
        """Items of it, in a row, ended well; ``lane`` is (slot number, device id)."""
        first = run.items[0] - self.items.start
        self.run.succeeded(self.places[first : first + len(run)], run, lane)

    def give_back(self, items: Sequence[int]) -> None:
        """These items, in a row, never began."""
        first = items[0] - self.items.start
        part = slice(first, first + len(items))
        self.run.give_back(self.places[part], self.values[part])


class Sent:
    """A piece of work in the hands of a slot."""

    __slots__ = (
        "count",
        "failed",
        "heard_at",
        "is_alone",
        "items",
        "kind",
        "name",
        "recalled",
        "reported",
        "sent_at",
        "span",
        "work_id",
    )

    def __init__(
        self, work_id: int, items: Sequence[int], kind: Hashable, span: Span | None, name: str
    ) -> None:
        """``name`` is what its kind of work is remembered by; empty for none."""
        self.work_id = work_id
        self.items = items
        self.kind = kind
        self.name = name
        self.span = span
        self.count = len(items)
        """How many it has, less those that were taken back."""
        self.is_alone = self.count == 1
        self.reported = 0
        self.failed = False  # whether one of its items did
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
