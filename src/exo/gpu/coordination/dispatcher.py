"""Joins the pull scheduler with the slots of a node: one thread that feeds and listens."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.coordination.cargo import Numbers
from exo.gpu.coordination.endings import Endings
from exo.gpu.coordination.feeding import Feeder
from exo.gpu.coordination.items import Job
from exo.gpu.coordination.map_run import MapRun
from exo.gpu.coordination.newcomers import Newcomers
from exo.gpu.coordination.open_slots import OpenSlots
from exo.gpu.coordination.outcomes_learned import OutcomesLearned
from exo.gpu.coordination.picky_jobs import PickyJobs
from exo.gpu.coordination.slots import common_request
from exo.gpu.coordination.tries import Tries
from exo.gpu.execution.successes import Successes
from exo.gpu.nodes.transport import FarNode
from exo.gpu.scheduling.retry import RetryPolicy
from exo.gpu.scheduling.scheduler import PullScheduler
from exo.gpu.vocabulary.errors import ExecutorClosed, WorkerDied
from exo.gpu.vocabulary.job import (
    Ending,
    SlotAcknowledged,
    SlotChunk,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotOutput,
    SlotReady,
    SlotRecalled,
    SlotSetup,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger(__name__)

Entries = list[Job | MapRun]


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
        pool: OpenSlots | None = None,
        inbox: queue.SimpleQueue[Any] | None = None,
    ) -> None:
        """Take the leases and start the slots; with ``own_node`` the node is closed at the end.

        A ``pool`` that was opened already, with the ``inbox`` as its sink, is taken over.

        Of several requests each is met as far as it can be, and at least one.
        ``retry`` says what is tried again; by default deaths, ``max_attempts`` times in all, and
        items that ran out of memory. ``on_retry`` hears in words of each item that is,
        ``on_output`` what workers print, and ``on_device_lost`` of a device that an item found
        gone, so that it can be kept out of scheduling.
        """
        requests = request if isinstance(request, tuple) else (request,)
        self._node = node
        self._own_node = own_node
        retry = retry or RetryPolicy(max_attempts=max_attempts)
        far_seconds = node.latency_seconds if isinstance(node, FarNode) else 0.0
        self._scheduler = PullScheduler(max_attempts=retry.max_attempts, far_seconds=far_seconds)
        self._inbox: queue.SimpleQueue[Entries | SlotEvent | _Close | _Cancel | None] = (
            inbox or queue.SimpleQueue()
        )
        self._endings = Endings(
            node, requests, retry, on_retry=on_retry, on_device_lost=on_device_lost
        )
        self._picky = PickyJobs(node, common_request(requests))
        self.numbers = Numbers()
        """Numbers of items, for whoever makes jobs."""
        self._closing: _Close | None = None
        self._over = False
        # Until Python 3.13 an interrupted join of a thread counts as one that came to its end.
        self._ended = threading.Event()
        self._door = threading.Lock()  # between adding a job and the end of the last one
        self._problem = ""
        self._failure: BaseException | None = None
        self.started = threading.Event()
        """Set once every slot is ready or given up."""
        try:
            self._pool = pool or OpenSlots(node, setup, self._inbox.put, on_output)
            if pool is None:
                self._pool.open_all(requests, slots, wait_seconds)
        except BaseException:
            if own_node:
                node.close()
            raise
        self.left_out = self._pool.left_out
        self.slots = self._pool.live
        """Those that there are now, by number."""
        self._learned = OutcomesLearned(requests[0].kind)
        self._feeder = Feeder(
            node, self._scheduler, self._wants, self.numbers, self.slots, learned=self._learned
        )
        self._tries = Tries(self._endings, self._pool, self._feeder, self._scheduler, self._picky)
        self._starting = set(self.slots)
        self.lanes = tuple((number, slot.device) for number, slot in self.slots.items())
        """(slot number, device) of every slot, in the order of preference."""
        self.devices = tuple({device.device_id: device for _, device in self.lanes}.values())
        self._newcomers = Newcomers(node, requests, self._pool.devices, self.nudge)
        self._thread = threading.Thread(target=self._serve, name="exo-gpu-dispatch", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why slots were given up, or nothing."""
        return self._problem or self._tries.problem

    def add(self, entries: Sequence[Job] | Sequence[MapRun]) -> None:
        """Queue jobs or maps behind those that wait; returns at once.

        Raises:
            ExecutorClosed: when it has ended.

        """
        with self._door:
            if self._over:
                raise ExecutorClosed("this executor has ended: it takes no more work")
            self._inbox.put(list(entries))

    def cancel(self, item: int) -> None:
        """End an item wherever it is; returns at once, and its end is told as of any other.

        One that waits never begins. One that runs is asked to stop, then made to.
        """
        self._inbox.put(_Cancel(item))

    def nudge(self) -> None:
        """Look again at what can be sent; returns at once."""
        self._inbox.put(None)

    def close(self, *, kill: bool = False, drop: bool = False, wait: bool = True) -> None:
        """End once all jobs have ended, or with ``kill`` now; harmless twice.

        ``drop`` says that jobs which wait may have been withdrawn: they are asked at once.
        """
        self._inbox.put(_Close(kill, drop))
        if wait and threading.current_thread() is not self._thread:
            self._ended.wait()
            self._thread.join()

    def _serve(self) -> None:
        try:
            while not self._finished():
                with contextlib.suppress(queue.Empty):
                    self._handle(self._inbox.get(timeout=self._look_seconds()))
                while not self._inbox.empty():
                    self._handle(self._inbox.get())
                self._picky.retired += self._newcomers.look(self._endings.lost)
                if self._picky.jobs or self._picky.retired or self._pool.retiring:
                    self._make_room()
                self._feed()
                self._feeder.take_over()
            kill = self._closing is not None and self._closing.kill
            self._pool.close(kill=kill)
        except BaseException as error:
            self._failure = error
            self._pool.close(kill=True)
            raise
        finally:
            try:
                self._leave()
            finally:
                self._ended.set()

    def _look_seconds(self) -> float | None:
        """How long to wait for events; None: as long as it takes."""
        looks = [one.look_seconds for one in (self._picky, self._feeder, self._newcomers)]
        return min((one for one in looks if one is not None), default=None)

    def _leave(self) -> None:
        """Tell the end of everything that is left: no caller waits for ever, whatever broke."""
        with self._door:
            self._over = True
        while not self._inbox.empty():
            event = self._inbox.get()
            if isinstance(event, list):
                self._feeder.add(event)
        broken = f"the executor broke: {self._failure!r}"
        self._end_all(broken if self._failure else "the executor was shut down before it ended")
        self.started.set()
        self._learned.keep()
        self._newcomers.close()
        if self._own_node:
            self._node.close()

    def _finished(self) -> bool:
        if self._closing is None:
            return False
        return self._closing.kill or not self._feeder.has_work

    def _handle(self, event: Entries | SlotEvent | _Close | _Cancel | None) -> None:
        match event:
            case list():
                self._feeder.add(event)
            case _Close():
                self._close_soon(event)
            case _Cancel():
                self._cancel(event.item)
            case None:
                pass  # what can be sent next has changed
            case _:
                self._hear(event)

    def _hear(self, event: SlotEvent) -> None:
        match event:
            case SlotOutcomes():
                self._items_ended(event)
            case SlotIdle():
                self._slot_idle(event)
            case SlotRecalled():
                self._items_recalled(event)
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

    def _items_ended(self, event: SlotOutcomes) -> None:
        slot, outcomes = self.slots.get(event.slot_id), event.outcomes
        if slot is None:
            return
        sent = slot.works[0]
        if isinstance(outcomes, Successes) and sent.span is not None:
            sent.span.succeeded(outcomes, (slot.number, slot.device.device_id))
            sent.heard(len(outcomes))
            return
        self._feeder.unfold(sent, [outcome.item for outcome in outcomes])
        for outcome in outcomes:
            sent.heard(1)
            sent.failed = sent.failed or outcome.ending is not Ending.SUCCEEDED
            self._tries.ended(outcome, slot)

    def _items_recalled(self, event: SlotRecalled) -> None:
        slot = self.slots.get(event.slot_id)
        for sent in slot.works if slot is not None else ():
            if sent.work_id == event.work_id:
                self._feeder.recalled(sent, event.items)

    def _slot_idle(self, event: SlotIdle) -> None:
        slot = self.slots.get(event.slot_id)
        for sent in tuple(slot.works) if slot is not None else ():
            if slot is not None and sent.work_id == event.work_id:
                self._feeder.ended(slot, sent)

    def _close_soon(self, event: _Close) -> None:
        kill = event.kill or (self._closing is not None and self._closing.kill)
        self._closing = _Close(kill, event.drop)
        if event.drop:
            self._feeder.keep(Job.wanted)

    def _slot_started(self, number: int) -> None:
        slot = self.slots.get(number)
        if slot is None:
            return
        self._scheduler.open_slot(number)
        slot.ready = True
        self._came_up(number)

    def _came_up(self, number: int) -> None:
        self._starting.discard(number)
        if not self._starting:
            self.started.set()

    def _slot_died(self, event: SlotDied) -> None:
        slot = self.slots.get(event.slot_id)
        if slot is None:
            return
        sent = slot.works.popleft()
        slot.idle_at = time.perf_counter()
        self._feeder.unfold(sent, event.unfinished)
        self._feeder.let_go_of(sent)
        self._tries.died(event, slot, sent)

    def _hand_on(self, chunk: SlotChunk) -> None:
        job, slot = self._feeder.jobs.get(chunk.item), self.slots.get(chunk.slot_id)
        if job is not None and slot is not None and job.on_chunk is not None:
            job.chunks += 1
            job.on_chunk(chunk, partial(self._node.allow, slot.number, slot.works[0].work_id))

    def _cancel(self, item: int) -> None:
        job = self._feeder.job_of(item)
        if job is None:
            return
        job.cancelled = True
        for slot in self.slots.values():
            for sent in slot.works:
                if item in sent.items:
                    self._node.cancel(slot.number, sent.work_id, item)

    def _slot_failed(self, event: SlotFailed) -> None:
        slot = self.slots.get(event.slot_id)
        if slot is None:
            return
        device = slot.device
        self._problem = f"{device.device_id}: {event.reason}"
        last_line = event.reason.strip().rpartition("\n")[2]
        logger.warning("a slot of %s is given up: %s", device.device_id, last_line)
        self._scheduler.close_slot(event.slot_id)
        for number, sent in enumerate(reversed(slot.works)):
            # Of what it was at, some may have been reported; what was to come never began.
            begun = number + 1 == len(slot.works) and event.unfinished
            self._feeder.recalled(sent, event.unfinished if begun else sent.items)
        self._pool.drop(event.slot_id)
        self._came_up(event.slot_id)
        self._feeder.unbind(device.device_id)

    def _feed(self) -> None:
        if self._closing is not None and self._closing.kill:
            return
        waits = self._picky.jobs or self._picky.retired
        if self.slots:
            self._newcomers.came()
        elif not waits and not (self._feeder.has_work and self._newcomers.may_come()):
            self._end_all(f"no worker is left: {self.problem}")
        for slot in self.slots.values():
            while self._picky.jobs and not slot.busy and not slot.retiring:
                picky = self._picky.take(slot.device.device_id, slot.memory_bytes)
                if picky is None:
                    break
                if self._wants(picky):
                    self._feeder.send_jobs(slot, [picky])
            self._feeder.feed(slot)

    def _wants(self, job: Job) -> bool:
        """Whether a job is still to run; its end is told where it was cancelled meanwhile."""
        if not job.wanted():
            return False
        if job.cancelled:
            self._tries.withdraw(job)
        return not job.cancelled

    def _make_room(self) -> None:
        """For items that no slot can take: a lease of their size, in place of smaller ones."""
        work_left = bool(self._scheduler.waiting or self._feeder.has_more)
        changes = self._pool.make_room(self._picky, self._endings.lost, work_left=work_left)
        for slot in changes.closed:
            self._scheduler.close_slot(slot.number)
            self._feeder.unbind(slot.device.device_id)
        if changes.hopeless is not None:
            self._tries.give_up(changes.hopeless, changes.why)

    def _end_all(self, reason: str) -> None:
        self._picky.jobs.clear()
        self._picky.retired.clear()
        jobs = self._feeder.clear(WorkerDied(reason))
        for job in filter(Job.wanted, jobs):
            self._tries.withdraw(job, reason, None)
