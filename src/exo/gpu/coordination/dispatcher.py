"""Joins the pull scheduler with the slots of a node: one thread that feeds and listens."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.endings import NO_RETRY, Endings, last_word
from exo.gpu.coordination.items import Function, Job, LiveSlot
from exo.gpu.coordination.open_slots import OpenSlots
from exo.gpu.coordination.picky_jobs import PickyJobs
from exo.gpu.coordination.slots import acquire_for_all
from exo.gpu.scheduling.retry import RetryPolicy, RetryVerdict
from exo.gpu.scheduling.scheduler import PullScheduler
from exo.gpu.vocabulary.errors import ExecutorClosed
from exo.gpu.vocabulary.job import (
    Attempt,
    Cause,
    Ending,
    Outcome,
    SlotAcknowledged,
    SlotChunk,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotOutput,
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

__all__ = ["Dispatcher", "Function", "Job"]

logger = logging.getLogger(__name__)


# How far a stream may be ahead of its reader, in chunks.
STREAM_CREDITS = 16


class _Close(msgspec.Struct, frozen=True):
    kill: bool
    drop: bool


class _Cancel(msgspec.Struct, frozen=True):
    item: int


class Dispatcher:
    """Holds leases and slots, gives each free slot its next items, and tells every end once.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.

    """

    def __init__(
        self,
        node: Node,
        request: Request | tuple[Request, ...],
        *,
        setup: SlotSetup | None,
        slots: int | None = None,
        max_attempts: int = 3,
        retry: RetryPolicy | None = None,
        own_node: bool = False,
        wait_seconds: float | None = None,
        on_output: Callable[[SlotOutput], None] | None = None,
        on_retry: Callable[[Job, str], None] | None = None,
        on_device_lost: Callable[[GPUDevice, str], None] | None = None,
    ) -> None:
        """Take the leases and start the slots; with ``own_node`` the node is closed at the end.

        Of several requests each is met as far as it can be, and at least one.
        ``retry`` says what is tried again; by default deaths, ``max_attempts`` times in all, and
        items that ran out of memory. ``on_retry`` hears in words of each item that is,
        ``on_output`` what workers print, and ``on_device_lost`` of a device that an item found
        gone, so that it can be kept out of scheduling.
        """
        requests = request if isinstance(request, tuple) else (request,)
        self._node = node
        self._own_node = own_node
        self._scheduler = PullScheduler(max_attempts=max_attempts)
        self._inbox: queue.SimpleQueue[list[Job] | SlotEvent | _Close | _Cancel] = (
            queue.SimpleQueue()
        )
        self._open = OpenSlots(node, setup, self._inbox.put, on_output)
        self._endings = Endings(
            node,
            requests,
            retry or RetryPolicy(max_attempts=max_attempts),
            on_retry=on_retry,
            on_device_lost=on_device_lost,
        )
        self._picky = PickyJobs(node, _common(requests))
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
        self._slots = self._open.live
        try:
            self.left_out = self._open_slots(requests, slots, wait_seconds)
        except BaseException:
            if own_node:
                node.close()
            raise
        self.devices = tuple(
            {slot.device.device_id: slot.device for slot in self._slots.values()}.values()
        )
        self._starting = set(self._slots)
        self._devices = self._open.devices
        self.lanes = tuple((number, slot.device) for number, slot in self._slots.items())
        """(slot number, device) of every slot, in the order of preference."""
        self._thread = threading.Thread(target=self._serve, name="exo-gpu-dispatch", daemon=True)
        self._thread.start()

    def _open_slots(
        self,
        requests: tuple[Request, ...],
        slots: int | None,
        wait_seconds: float | None,
    ) -> tuple[Refusal, ...]:
        acquired, left_out = acquire_for_all(
            self._node, requests, slots=slots, wait_seconds=wait_seconds
        )
        waiting = deque(acquired)
        try:
            while waiting:
                lease_id, device = waiting.popleft()
                self._open.open(lease_id, device, requests[0].memory_bytes)
        except BaseException:
            self._open.close(kill=True)
            for lease_id, _ in waiting:
                self._node.release(lease_id)
            raise
        return left_out

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

    def cancel(self, item: int) -> None:
        """End an item wherever it is; returns at once, and its end is told as of any other.

        One that waits never begins. One that runs is asked to stop, then made to.
        """
        self._inbox.put(_Cancel(item))

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
                with contextlib.suppress(queue.Empty):
                    self._handle(self._inbox.get(timeout=self._picky.look_seconds))
                while not self._inbox.empty():
                    self._handle(self._inbox.get())
                if self._picky.jobs or self._picky.retired or self._open.retiring:
                    self._make_room()
                self._feed()
            kill = self._closing is not None and self._closing.kill
            self._open.close(kill=kill)
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
        waiting = self._fresh or self._sent or any(self._bound.values())
        return self._closing.kill or not waiting

    def _handle(self, event: list[Job] | SlotEvent | _Close | _Cancel) -> None:
        match event:
            case list():
                for job in event:
                    self._queue_of(job).append(job)
            case _Close():
                self._close_soon(event)
            case _Cancel():
                self._cancel(event.item)
            case _:
                self._hear(event)

    def _hear(self, event: SlotEvent) -> None:
        match event:
            case SlotOutcomes():
                for outcome in event.outcomes:
                    self._end(outcome, event.slot_id)
            case SlotIdle():
                self._slot_idle(event.slot_id)
            case SlotReady():
                self._slot_started(event.slot_id)
            case SlotDied():
                self._slot_died(event)
            case SlotFailed():
                self._slot_failed(event)
            case SlotChunk():
                self._hand_on(event)
            case SlotAcknowledged():
                pass

    def _slot_idle(self, number: int) -> None:
        slot = self._slots.get(number)
        if slot is not None:
            seconds = time.perf_counter() - slot.sent_at
            self._scheduler.finished(slot.number, slot.sent_items, seconds)
            slot.busy, slot.items = False, ()

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
        slot = self._slots.get(number)
        if slot is None:
            return
        self._scheduler.open_slot(number)
        if slot.sent_items == 0:
            slot.busy = False
        self._starting.discard(number)
        if not self._starting:
            self.started.set()

    def _slot_died(self, event: SlotDied) -> None:
        slot = self._slots.get(event.slot_id)
        if slot is None:
            return
        alone = slot.sent_items == 1
        started_at = slot_wall(slot.sent_at, event.at)
        slot.busy, slot.sent_items, slot.items = False, 0, ()
        for item in event.unfinished:
            outcome = Outcome(
                item=item,
                ending=Ending.DIED,
                started_at=started_at,
                ended_at=event.at,
                reason=event.reason,
                cause=event.cause,
            )
            self._fail(self._sent[item], outcome, slot, alone=alone)

    def _fail(self, job: Job, outcome: Outcome, slot: LiveSlot | None, *, alone: bool) -> None:
        """An attempt did not succeed: another one, or the end."""
        if slot is not None:
            self._note(job, outcome, slot.number)
        tried = slot is not None and not job.cancelled and not job.chunks
        verdict = self._endings.judge(job, alone=alone) if tried else NO_RETRY
        if verdict.cordon and slot is not None:
            self._problem = f"{slot.device.device_id} is lost: {outcome.reason}"
            self._open.retire(slot.device.device_id)
        if not verdict.again:
            self._sent.pop(outcome.item)
            job.end(last_word(job, outcome, verdict), job)
            return
        job.failure = outcome
        job.memory_bytes, job.without_devices = verdict.memory_bytes, verdict.without_devices
        if job.memory_bytes is not None or job.without_devices:
            self._picky.jobs.append(job)
        else:
            self._scheduler.give_back((job.item,))

    def _hand_on(self, chunk: SlotChunk) -> None:
        job, slot = self._sent.get(chunk.item), self._slots.get(chunk.slot_id)
        if job is not None and slot is not None and job.on_chunk is not None:
            job.chunks += 1
            job.on_chunk(chunk, partial(self._node.allow, slot.number, slot.work_id))

    def _cancel(self, item: int) -> None:
        job = self._sent.get(item)
        if job is None:
            waiting = itertools.chain(self._fresh, *self._bound.values())
            job = next((one for one in waiting if one.item == item), None)
        if job is None:
            return
        job.cancelled = True
        for slot in self._slots.values():
            if slot.busy and item in slot.items:
                self._node.cancel(slot.number, slot.work_id, item)

    def _withdraw(self, job: Job) -> None:
        """A job that was cancelled before it was sent, or between two tries."""
        self._sent.pop(job.item, None)
        now = time.time()
        outcome = Outcome(
            item=job.item,
            ending=Ending.DIED,
            started_at=now,
            ended_at=now,
            reason="it was cancelled",
            cause=Cause.CANCELLED,
        )
        job.end(outcome, job)

    def _slot_failed(self, event: SlotFailed) -> None:
        device = self._devices[event.slot_id]
        self._problem = f"{device.device_id}: {event.reason}"
        logger.warning("a slot of %s is given up: %s", device.device_id, _last_line(event.reason))
        self._scheduler.close_slot(event.slot_id)
        self._scheduler.give_back(event.unfinished)
        self._open.drop(event.slot_id)
        self._starting.discard(event.slot_id)
        if not self._starting:
            self.started.set()
        self._unbind(device)
        if not self._slots and not self._picky.jobs:
            self._end_all(f"no worker is left: {self._problem}")

    def _unbind(self, device: GPUDevice) -> None:
        if not self._open.has(device):
            # Nobody else is of that device: its own jobs go to whoever is free.
            self._fresh.extendleft(reversed(self._bound.pop(device.device_id, deque())))

    def _feed(self) -> None:
        if self._closing is not None and self._closing.kill:
            return
        if not self._slots and not (self._picky.jobs or self._picky.retired):
            self._end_all(f"no worker is left: {self._problem}")
        for slot in self._slots.values():
            while not slot.busy and not slot.retiring:
                jobs = self._next_jobs(slot)
                if not jobs:
                    break
                ready = [job for job in jobs if self._wants(job)]
                if ready:
                    self._send(slot, ready)

    def _wants(self, job: Job) -> bool:
        """Whether a job is still to run; its end is told where it was cancelled meanwhile."""
        if not _begin(job):
            return False
        if job.cancelled:
            self._withdraw(job)
        return not job.cancelled

    def _next_jobs(self, slot: LiveSlot) -> list[Job]:
        if self._picky.jobs:
            picky = self._picky.take(slot.device.device_id, slot.memory_bytes)
            if picky is not None:
                return [picky]
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
        single = first.command is not None or first.on_chunk is not None
        limit = 1 if single else first.chunk or take.fresh
        while len(jobs) < limit and self._fresh and self._fresh[0].function is first.function:
            jobs.append(self._fresh.popleft())
        return jobs

    def _send(self, slot: LiveSlot, jobs: list[Job]) -> None:
        first = jobs[0]
        self._sent.update({job.item: job for job in jobs})
        slot.busy, slot.sent_items, slot.sent_at = True, len(jobs), time.perf_counter()
        slot.work_id, slot.items = next(self._work_numbers), tuple(job.item for job in jobs)
        self._node.submit(
            slot.number,
            Work(
                work_id=slot.work_id,
                items=slot.items,
                payloads=tuple(job.payload for job in jobs),
                function=first.function.number if first.function else None,
                function_payload=first.function.payload if first.function else b"",
                command=first.command(slot.number, slot.device) if first.command else None,
                deadline_seconds=first.deadline_seconds,
                stream=first.on_chunk is not None,
                credits=STREAM_CREDITS if first.on_chunk is not None else 0,
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
                cause=outcome.cause,
                memory_bytes=self._memory_of(slot_id),
                names=outcome.names,
            ),
        )

    def _memory_of(self, slot_id: int) -> int | None:
        slot = self._slots.get(slot_id)
        return None if slot is None else slot.memory_bytes

    def _end(self, outcome: Outcome, slot_id: int) -> None:
        if outcome.ending is not Ending.SUCCEEDED:
            self._fail(self._sent[outcome.item], outcome, self._slots.get(slot_id), alone=True)
            return
        job = self._sent.pop(outcome.item)
        self._note(job, outcome, slot_id)
        job.end(outcome, job)

    def _make_room(self) -> None:
        """For items that no slot can take: a lease of their size, in place of smaller ones."""
        work_left = bool(self._fresh or self._scheduler.waiting or any(self._bound.values()))
        changes = self._open.make_room(self._picky, self._endings.lost, work_left=work_left)
        for slot in changes.closed:
            self._scheduler.close_slot(slot.number)
            self._unbind(slot.device)
        if changes.hopeless is not None:
            self._give_up(changes.hopeless, changes.why)

    def _give_up(self, job: Job, why: str) -> None:
        """An item that was to be tried again, and cannot be."""
        assert job.failure is not None
        self._picky.jobs.remove(job)
        self._sent.pop(job.item)
        job.end(last_word(job, job.failure, RetryVerdict(again=False, reason=why)), job)

    def _end_all(self, reason: str) -> None:
        now = time.time()
        waiting = [*self._fresh, *itertools.chain.from_iterable(self._bound.values())]
        self._picky.jobs.clear()
        self._picky.retired.clear()
        jobs = [*self._sent.values(), *(job for job in waiting if _begin(job))]
        self._fresh.clear()
        self._bound.clear()
        self._sent.clear()
        for job in jobs:
            died = Outcome(
                item=job.item, ending=Ending.DIED, started_at=now, ended_at=now, reason=reason
            )
            job.end(died, job)


def _common(requests: tuple[Request, ...]) -> Request:
    """What several requests, for a runtime each, have in common."""
    first = requests[0]
    return first if len(requests) == 1 else msgspec.structs.replace(first, runtime=None)


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
