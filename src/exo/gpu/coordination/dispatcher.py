"""Joins the pull scheduler with the slots of a node: one thread that feeds and listens."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.slots import acquire_slots
from exo.gpu.scheduling.scheduler import PullScheduler
from exo.gpu.vocabulary.errors import ExecutorClosed
from exo.gpu.vocabulary.job import (
    Attempt,
    Ending,
    Outcome,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotReady,
    SlotSetup,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger(__name__)


class Function(msgspec.Struct, frozen=True, eq=False):
    """A function that many items share: it is sent to a slot once."""

    number: int
    payload: bytes


class Job(msgspec.Struct, eq=False):
    """One item on its way: what to send, whom to tell, and the tries so far.

    ``begin`` is asked once, right before the item is first sent, and may withdraw it by
    returning False. ``end`` is told exactly once, unless it was withdrawn.
    """

    item: int
    begin: Callable[[], bool]
    end: Callable[[Outcome, Job], None]
    payload: bytes = b""
    function: Function | None = None
    command: str | None = None
    device_id: str | None = None
    """At its first try only a slot of this device takes it."""
    chunk: int | None = None
    """How many of its kind a slot takes at once; None: the scheduler decides."""
    attempts: tuple[Attempt, ...] = ()
    begun: bool = False


class _Slot:
    __slots__ = ("busy", "device", "number", "sent_at", "sent_items")

    def __init__(self, number: int, device: GPUDevice) -> None:
        self.number = number
        self.device = device
        self.busy = True  # until its first process is ready
        self.sent_at = 0.0
        self.sent_items = 0


class _Close(msgspec.Struct, frozen=True):
    kill: bool
    drop: bool


class Dispatcher:
    """Holds leases and slots, gives each free slot its next items, and tells every end once.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.

    """

    def __init__(
        self,
        node: Node,
        request: Request,
        *,
        setup: SlotSetup | None,
        slots: int | None = None,
        max_attempts: int = 3,
        own_node: bool = False,
        wait_seconds: float | None = None,
    ) -> None:
        """Take the leases and start the slots; with ``own_node`` the node is closed at the end."""
        self._node = node
        self._own_node = own_node
        self._scheduler = PullScheduler(max_attempts=max_attempts)
        self._inbox: queue.SimpleQueue[list[Job] | SlotEvent | _Close] = queue.SimpleQueue()
        self._fresh: deque[Job] = deque()
        self._bound: dict[str, deque[Job]] = {}
        self._sent: dict[int, Job] = {}
        self._work_numbers = itertools.count()
        self._closing: _Close | None = None
        self._over = False
        self._door = threading.Lock()  # between adding a job and the end of the last one
        self._problem = ""
        self._failure: BaseException | None = None
        self.started = threading.Event()
        """Set once every slot is ready or given up."""
        self._slots: dict[int, _Slot] = {}
        try:
            taken, decision = acquire_slots(node, request, slots=slots, wait_seconds=wait_seconds)
            self._open_slots(taken, setup)
        except BaseException:
            if own_node:
                node.close()
            raise
        self.left_out: tuple[Refusal, ...] = decision.left_out
        self.devices = tuple(
            {slot.device.device_id: slot.device for slot in self._slots.values()}.values()
        )
        self._starting = set(self._slots)
        self._devices = {number: slot.device for number, slot in self._slots.items()}
        self.lanes = tuple((number, slot.device) for number, slot in self._slots.items())
        """(slot number, device) of every slot, in the order of preference."""
        self._thread = threading.Thread(target=self._serve, name="exo-gpu-dispatch", daemon=True)
        self._thread.start()

    def _open_slots(self, acquired: list[tuple[str, GPUDevice]], setup: SlotSetup | None) -> None:
        waiting = deque(acquired)
        try:
            while waiting:
                lease_id, device = waiting[0]
                number = self._node.open_slot(lease_id, setup, self._inbox.put)
                self._slots[number] = _Slot(number, device)
                waiting.popleft()
        except BaseException:
            self._node.close_slots(tuple(self._slots), kill=True)
            for lease_id, _ in waiting:
                self._node.release(lease_id)
            raise

    @property
    def problem(self) -> str:
        """Why slots were given up, or nothing."""
        return self._problem

    def add(self, jobs: Iterable[Job]) -> None:
        """Queue jobs behind those that wait; returns at once.

        Raises:
            ExecutorClosed: when it has ended.

        """
        with self._door:
            if self._over:
                raise ExecutorClosed("this executor has ended: it takes no more work")
            self._inbox.put(list(jobs))

    def close(self, *, kill: bool = False, drop: bool = False, wait: bool = True) -> None:
        """End once all jobs have ended, or with ``kill`` now; harmless twice.

        ``drop`` says that jobs which wait may have been withdrawn: they are asked at once.
        """
        self._inbox.put(_Close(kill, drop))
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        try:
            while not self._finished():
                self._handle(self._inbox.get())
                while not self._inbox.empty():
                    self._handle(self._inbox.get())
                self._feed()
            kill = self._closing is not None and self._closing.kill
            self._node.close_slots(tuple(self._slots), kill=kill)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._leave()

    def _leave(self) -> None:
        """Tell the end of everything that is left: no caller waits for ever, whatever broke."""
        with self._door:
            self._over = True
        while not self._inbox.empty():
            event = self._inbox.get()
            if isinstance(event, list):
                self._fresh.extend(event)
        broken = f"the executor broke: {self._failure!r}"
        self._end_all(broken if self._failure else "the executor was shut down before it ended")
        self.started.set()
        if self._own_node:
            self._node.close()

    def _finished(self) -> bool:
        if self._closing is None:
            return False
        return self._closing.kill or not (self._fresh or self._sent or any(self._bound.values()))

    def _handle(self, event: list[Job] | SlotEvent | _Close) -> None:
        match event:
            case SlotOutcomes():
                for outcome in event.outcomes:
                    self._end(outcome, event.slot_id)
            case SlotIdle():
                slot = self._slots[event.slot_id]
                seconds = time.perf_counter() - slot.sent_at
                self._scheduler.finished(slot.number, slot.sent_items, seconds)
                slot.busy = False
            case SlotReady():
                self._scheduler.open_slot(event.slot_id)
                self._slot_started(event.slot_id)
            case SlotDied():
                self._slot_died(event)
            case SlotFailed():
                self._slot_failed(event)
            case _Close():
                self._close_soon(event)
            case _:
                for job in event:
                    self._queue_of(job).append(job)

    def _close_soon(self, event: _Close) -> None:
        kill = event.kill or (self._closing is not None and self._closing.kill)
        self._closing = _Close(kill, event.drop)
        if event.drop:
            self._fresh = deque(job for job in self._fresh if _begin(job))

    def _queue_of(self, job: Job) -> deque[Job]:
        if job.device_id is None:
            return self._fresh
        return self._bound.setdefault(job.device_id, deque())

    def _slot_started(self, number: int) -> None:
        slot = self._slots[number]
        if slot.sent_items == 0:
            slot.busy = False
        self._starting.discard(number)
        if not self._starting:
            self.started.set()

    def _slot_died(self, event: SlotDied) -> None:
        slot = self._slots[event.slot_id]
        slot.busy, slot.sent_items = False, 0
        verdict = self._scheduler.died(event.unfinished)
        for item in event.unfinished:
            self._note(
                self._sent[item],
                Outcome(
                    item=item,
                    ending=Ending.DIED,
                    started_at=slot_wall(slot.sent_at, event.at),
                    ended_at=event.at,
                    reason=event.reason,
                ),
                event.slot_id,
            )
        for item in verdict.given_up:
            job = self._sent.pop(item)
            last = job.attempts[-1]
            tries = "; ".join(f"on {tried.device_id}: {tried.reason}" for tried in job.attempts)
            reason = f"its process died {len(job.attempts)} times ({tries})"
            job.end(
                Outcome(
                    item=item,
                    ending=Ending.DIED,
                    started_at=last.started_at,
                    ended_at=last.ended_at,
                    reason=reason,
                ),
                job,
            )

    def _slot_failed(self, event: SlotFailed) -> None:
        device = self._devices[event.slot_id]
        self._problem = f"{device.device_id}: {event.reason}"
        logger.warning("a slot of %s is given up: %s", device.device_id, _last_line(event.reason))
        self._scheduler.close_slot(event.slot_id)
        self._scheduler.give_back(event.unfinished)
        self._slots.pop(event.slot_id)
        self._node.close_slots((event.slot_id,))
        self._starting.discard(event.slot_id)
        if not self._starting:
            self.started.set()
        if all(slot.device.device_id != device.device_id for slot in self._slots.values()):
            # Nobody else is of that device: its own jobs go to whoever is free.
            self._fresh.extendleft(reversed(self._bound.pop(device.device_id, deque())))
        if not self._slots:
            self._end_all(f"no worker is left: {self._problem}")

    def _feed(self) -> None:
        if self._closing is not None and self._closing.kill:
            return
        if not self._slots:
            self._end_all(f"no worker is left: {self._problem}")
        for slot in self._slots.values():
            while not slot.busy:
                jobs = self._next_jobs(slot)
                if not jobs:
                    break
                ready = [job for job in jobs if _begin(job)]
                if ready:
                    self._send(slot, ready)

    def _next_jobs(self, slot: _Slot) -> list[Job]:
        bound = self._bound.get(slot.device.device_id)
        if bound and not self._scheduler.waiting:
            return [bound.popleft()]
        take = self._scheduler.take(slot.number, len(self._fresh))
        if take.items:
            return [self._sent[item] for item in take.items]
        if not self._fresh:
            return []
        jobs = [self._fresh.popleft()]
        first = jobs[0]
        limit = 1 if first.command is not None else first.chunk or take.fresh
        while len(jobs) < limit and self._fresh and self._fresh[0].function is first.function:
            jobs.append(self._fresh.popleft())
        return jobs

    def _send(self, slot: _Slot, jobs: list[Job]) -> None:
        first = jobs[0]
        self._sent.update({job.item: job for job in jobs})
        slot.busy, slot.sent_items, slot.sent_at = True, len(jobs), time.perf_counter()
        self._node.submit(
            slot.number,
            Work(
                work_id=next(self._work_numbers),
                items=tuple(job.item for job in jobs),
                payloads=tuple(job.payload for job in jobs),
                function=first.function.number if first.function else None,
                function_payload=first.function.payload if first.function else b"",
                command=first.command,
            ),
        )

    def _note(self, job: Job, outcome: Outcome, slot_id: int) -> None:
        job.attempts = (
            *job.attempts,
            Attempt(
                device_id=self._devices[slot_id].device_id,
                slot=slot_id,
                ending=outcome.ending,
                started_at=outcome.started_at,
                ended_at=outcome.ended_at,
                reason=outcome.reason,
            ),
        )

    def _end(self, outcome: Outcome, slot_id: int) -> None:
        job = self._sent.pop(outcome.item)
        self._scheduler.settled(outcome.item)
        self._note(job, outcome, slot_id)
        job.end(outcome, job)

    def _end_all(self, reason: str) -> None:
        now = time.time()
        waiting = [*self._fresh, *itertools.chain.from_iterable(self._bound.values())]
        jobs = [*self._sent.values(), *(job for job in waiting if _begin(job))]
        self._fresh.clear()
        self._bound.clear()
        self._sent.clear()
        for job in jobs:
            died = Outcome(
                item=job.item, ending=Ending.DIED, started_at=now, ended_at=now, reason=reason
            )
            job.end(died, job)


def _begin(job: Job) -> bool:
    """Ask the job once whether it still wants to run."""
    if not job.begun:
        job.begun = job.begin()
    return job.begun


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def slot_wall(sent_at: float, ended_wall: float) -> float:
    """Unix time of a moment on the performance counter, given a Unix time close to now."""
    return ended_wall - (time.perf_counter() - sent_at)
