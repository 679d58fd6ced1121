"""What waits to be sent, and what each free slot gets of it next."""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

from exo.gpu.coordination.cargo import Numbers, Sent, Slot, Span, batch_of
from exo.gpu.coordination.items import Job
from exo.gpu.coordination.map_run import MapRun
from exo.gpu.coordination.outcomes_learned import OutcomesLearned
from exo.gpu.scheduling.scheduler import PullScheduler
from exo.gpu.vocabulary.job import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exo.gpu.nodes.transport import Node

# An idle slot takes what waits at a busy one that has reported nothing new for so long; a chunk
# of the usual length is over by then.
STEAL_SECONDS = 0.15

# How far a stream may be ahead of its reader, in chunks.
STREAM_CREDITS = 16


class Feeder:
    """The queue in front of the slots. All calls come from the dispatcher's thread."""

    def __init__(
        self,
        node: Node,
        scheduler: PullScheduler,
        wants: Callable[[Job], bool],
        numbers: Numbers,
        slots: dict[int, Slot],
        *,
        learned: OutcomesLearned,
    ) -> None:
        """``wants`` says whether a job is still to run, right before it is sent."""
        self._learned = learned
        self.slots = slots
        self.jobs: dict[int, Job] = {}
        """By item number: what was sent alone, or waits for another try."""
        self._node = node
        self._scheduler = scheduler
        self._wants = wants
        self._numbers = numbers
        self._works = itertools.count()
        self._common: deque[Job | MapRun] = deque()
        self._bound: dict[str, deque[Job | MapRun]] = {}
        self._runs: set[MapRun] = set()

    def add(self, entries: Iterable[Job | MapRun]) -> None:
        """Queue jobs and maps behind those that wait."""
        for entry in entries:
            if isinstance(entry, MapRun):
                self._runs.add(entry)
            if entry.device_id is None:
                self._common.append(entry)
            else:
                self._bound.setdefault(entry.device_id, deque()).append(entry)

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs; a map that its reader has left alone does not count."""
        if self.jobs or any(slot.works for slot in self.slots.values()):
            return True
        return any(
            not isinstance(entry, MapRun) or not (entry.is_spent or entry.waits_for_reader)
            for queue in (self._common, *self._bound.values())
            for entry in queue
        )

    @property
    def has_more(self) -> bool:
        """Whether anything waits to be sent for the first time."""
        return any((self._common, *self._bound.values()))

    def job_of(self, item: int) -> Job | None:
        """The job of an item, whether it was sent yet or not; None for one that is not open."""
        waiting = (one for one in self._waiting_jobs() if one.item == item)
        return self.jobs.get(item) or next(waiting, None)

    def _waiting_jobs(self) -> Iterator[Job]:
        """The jobs that were not sent yet."""
        for entry in itertools.chain(self._common, *self._bound.values()):
            if isinstance(entry, Job):
                yield entry

    def keep(self, wanted: Callable[[Job], bool]) -> None:
        """Of the jobs that were not sent yet, only those."""
        for queue in (self._common, *self._bound.values()):
            kept = [entry for entry in queue if isinstance(entry, MapRun) or wanted(entry)]
            queue.clear()
            queue.extend(kept)

    def clear(self, error: BaseException) -> list[Job]:
        """Forget everything; maps end with the error, and the jobs are whoever calls to end."""
        jobs = [*self.jobs.values(), *self._waiting_jobs()]
        self.jobs.clear()
        self._common.clear()
        self._bound.clear()
        for run in self._runs:
            run.abandon(error)
            run.let_go()
        self._runs.clear()
        return jobs

    def unbind(self, device_id: str) -> None:
        """Nobody else is of that device: its own work goes to whoever is free."""
        if all(slot.device.device_id != device_id for slot in self.slots.values()):
            self._common.extendleft(reversed(self._bound.pop(device_id, deque())))

    def feed(self, slot: Slot) -> None:
        """Send a slot what it should have now: work where it is idle, the next a little before."""
        while not slot.retiring and slot.ready:
            if slot.works and not self._may_look_ahead(slot):
                return
            if not self._send_next(slot):
                return

    def _may_look_ahead(self, slot: Slot) -> bool:
        if len(slot.works) > 1:
            return False
        sent = slot.works[0]
        silent_seconds = time.perf_counter() - sent.heard_at
        return (
            silent_seconds
            < self._scheduler.ahead_seconds  # else it is at an item that takes longer than others
            and not sent.recalled
            and self._scheduler.is_nearly_done(slot.number, sent.left, sent.kind)
        )

    def _send_next(self, slot: Slot) -> bool:
        if self._scheduler.waiting:
            if slot.works:
                return False  # it goes alone, and what ran before may have killed it
            item = self._scheduler.take(slot.number, 0).items[0]
            job = self.jobs.get(item)
            if job is not None and self._wants(job):
                self.send_jobs(slot, [job])
            return True
        for queue in (self._bound.get(slot.device.device_id), self._common):
            if queue and self._send_from(queue, slot):
                return True
        return False

    def _send_from(self, queue: deque[Job | MapRun], slot: Slot) -> bool:
        passed: list[Job | MapRun] = []
        try:
            while queue:
                entry = queue[0]
                if isinstance(entry, Job):
                    if entry.command is not None and slot.works:
                        return False  # begun is what a journal calls it: not before it can
                    return self._send_first_jobs(queue, slot)
                limit = self._scheduler.take(slot.number, entry.rest, entry.function.number).fresh
                cut = entry.cut(limit, slot.number) if limit else None
                if cut is not None:
                    first = self._numbers.take(len(cut.places))
                    self._send_span(slot, Span(entry, first, cut))
                    return True
                queue.popleft()
                if entry.is_spent:
                    self._runs_over(entry)
                else:
                    passed.append(entry)  # its reader has to ask for more first
            return False
        finally:
            queue.extendleft(reversed(passed))

    def _runs_over(self, run: MapRun) -> None:
        # Until its last span has ended, it may have to be told of the end of everything.
        if all(sent.span is None or sent.span.run is not run for sent in self._sent()):
            self._runs.discard(run)

    def _sent(self) -> Iterator[Sent]:
        return itertools.chain.from_iterable(slot.works for slot in self.slots.values())

    def _send_first_jobs(self, queue: deque[Job | MapRun], slot: Slot) -> bool:
        first = queue.popleft()
        assert isinstance(first, Job)
        take = self._scheduler.take(slot.number, len(queue) + 1, first.kind)
        limit = 1 if first.command is not None or first.on_chunk else first.chunk or take.fresh
        jobs = [first]
        while len(jobs) < limit and queue and _go_together(first, queue[0]):
            jobs.append(queue.popleft())  # type: ignore[arg-type] - they go together
        ready = [job for job in jobs if self._wants(job)]
        if ready:
            self.send_jobs(slot, ready)
        return True

    def send_jobs(self, slot: Slot, jobs: Sequence[Job]) -> None:
        """Send jobs that go together."""
        first = jobs[0]
        self.jobs.update({job.item: job for job in jobs})
        sent = Sent(
            next(self._works), tuple(job.item for job in jobs), first.kind, None, _name_of(first)
        )
        slot.works.append(sent)
        self._node.submit(
            slot.number,
            Work(
                work_id=sent.work_id,
                items=sent.items,
                batch=None if first.command is not None else batch_of(jobs),
                is_single=first.is_single,
                function=first.function.number if first.function else None,
                function_payload=first.function.payload if first.function else b"",
                command=first.command(slot.number, slot.device) if first.command else None,
                deadline_seconds=first.deadline_seconds,
                stream=first.on_chunk is not None,
                credits=STREAM_CREDITS if first.on_chunk is not None else 0,
            ),
        )

    def _send_span(self, slot: Slot, span: Span) -> None:
        run = span.run
        sent = Sent(next(self._works), span.items, run.function.number, span, run.function.name)
        slot.works.append(sent)
        self._node.submit(
            slot.number,
            Work(
                work_id=sent.work_id,
                items=span.items,
                batch=span.batch,
                is_single=run.is_single,
                function=run.function.number,
                function_payload=run.function.payload,
                deadline_seconds=run.deadline_seconds,
            ),
        )

    def unfold(self, sent: Sent, items: Iterable[int]) -> None:
        """See to it that each of these items of a work has a job."""
        if sent.span is not None:
            for item in items:
                if item not in self.jobs:
                    self.jobs[item] = sent.span.job(item)

    def ended(self, slot: Slot, sent: Sent) -> None:
        """A slot is through with a work; the scheduler learns from what was really done."""
        now = time.perf_counter()
        seconds = now - max(sent.sent_at, slot.idle_at)
        self._scheduler.finished(slot.number, sent.reported, seconds, sent.kind)
        self._learned.add(slot, sent, seconds)
        if sent is slot.works[0]:
            slot.idle_at = now
        slot.works.remove(sent)
        self.let_go_of(sent)

    def let_go_of(self, sent: Sent) -> None:
        """A work is in no slot's hands any more, and with the last one of a map that map."""
        if sent.span is not None and sent.span.run.is_spent:
            self._runs_over(sent.span.run)

    def recalled(self, sent: Sent, items: Sequence[int]) -> None:
        """Items of a work that never began wait again, before all others."""
        sent.count -= len(items)
        if sent.span is not None:
            unfolded = [item for item in items if item in self.jobs]
            for item in unfolded:
                del self.jobs[item]
            sent.span.give_back(items)
            self._queue_again(sent.span.run)
            return
        for item in reversed(items):
            if self.jobs[item].attempts:
                self._scheduler.give_back((item,))  # it goes alone
            else:
                self._common.appendleft(self.jobs.pop(item))

    def _queue_again(self, run: MapRun) -> None:
        self._runs.add(run)
        queue = self._common
        if run.device_id is not None:
            queue = self._bound.setdefault(run.device_id, deque())
        if run not in queue:
            queue.appendleft(run)

    @property
    def look_seconds(self) -> float | None:
        """How soon to see whether an idle slot can take something over; None: there is nothing."""
        idle = any(not slot.busy and not slot.retiring for slot in self.slots.values())
        return STEAL_SECONDS if idle and self._victim() is not None else None

    def take_over(self) -> None:
        """Have what waits at a busy slot given back, where another one has nothing to do."""
        if all(slot.busy or slot.retiring for slot in self.slots.values()):
            return
        victim = self._victim()
        if victim is None:
            return
        now = time.perf_counter()
        for sent in tuple(victim.works)[::-1]:
            if not sent.recalled and now - max(sent.sent_at, victim.idle_at) > STEAL_SECONDS:
                sent.recalled = True
                self._node.recall(victim.number, sent.work_id)

    def _victim(self) -> Slot | None:
        """The slot with the most that waits behind what it is at and was not asked for yet."""
        left = {slot.number: 1 + slot.waiting for slot in self.slots.values() if slot.works}
        number = self._scheduler.victim(left)
        return None if number is None else self.slots[number]


def _name_of(job: Job) -> str:
    """What a job's kind of work is remembered by: its function's name, where it has one."""
    if job.function is not None:
        return job.function.name
    return job.kind if isinstance(job.kind, str) else ""


def _go_together(first: Job, other: Job | MapRun) -> bool:
    return (
        isinstance(other, Job)
        and other.function is first.function
        and other.kind == first.kind
        and other.command is None
        and other.on_chunk is None
        and other.is_single == first.is_single
        and other.deadline_seconds == first.deadline_seconds
    )
