"""What becomes of an item whose try has ended: told, sent again, or given up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from exo.gpu.coordination.endings import NO_RETRY, Endings, last_word
from exo.gpu.scheduling.retry import RetryVerdict
from exo.gpu.vocabulary.job import Attempt, Cause, Ending, Outcome, SlotDied

if TYPE_CHECKING:
    from exo.gpu.coordination.cargo import Sent, Slot
    from exo.gpu.coordination.feeding import Feeder
    from exo.gpu.coordination.items import Job
    from exo.gpu.coordination.open_slots import OpenSlots
    from exo.gpu.coordination.picky_jobs import PickyJobs
    from exo.gpu.scheduling.scheduler import PullScheduler


class Tries:
    """Notes every try of the jobs that were sent, and carries out what the endings' judge says."""

    def __init__(
        self,
        endings: Endings,
        pool: OpenSlots,
        feeder: Feeder,
        scheduler: PullScheduler,
        picky: PickyJobs,
    ) -> None:
        self.problem = ""
        """Which device was lost, and why."""
        self._endings = endings
        self._pool = pool
        self._jobs = feeder.jobs
        self._scheduler = scheduler
        self._picky = picky

    def ended(self, outcome: Outcome, slot: Slot) -> None:
        """A slot reported an item."""
        if outcome.ending is not Ending.SUCCEEDED:
            self._failed(self._jobs[outcome.item], outcome, slot, alone=True)
            return
        job = self._jobs.pop(outcome.item)
        _note(job, outcome, slot)
        job.end(outcome, job)

    def died(self, event: SlotDied, slot: Slot, sent: Sent) -> None:
        """A slot's process is gone, and with it these items of a work."""
        now_seconds = time.perf_counter()
        for item in event.unfinished:
            outcome = Outcome(
                item=item,
                ending=Ending.DIED,
                started_at=event.at - (now_seconds - sent.sent_at),
                ended_at=event.at,
                reason=event.reason,
                cause=event.cause,
            )
            self._failed(self._jobs[item], outcome, slot, alone=sent.is_alone)

    def _failed(self, job: Job, outcome: Outcome, slot: Slot, *, alone: bool) -> None:
        _note(job, outcome, slot)
        tried = not job.cancelled and not job.chunks
        verdict = self._endings.judge(job, alone=alone) if tried else NO_RETRY
        if verdict.cordon:
            self.problem = f"{slot.device.device_id} is lost: {outcome.reason}"
            self._pool.retire(slot.device.device_id)
        if not verdict.again:
            self._jobs.pop(outcome.item)
            job.end(last_word(job, outcome, verdict), job)
            return
        job.failure = outcome
        job.memory_bytes, job.without_devices = verdict.memory_bytes, verdict.without_devices
        if job.memory_bytes is not None or job.without_devices:
            self._picky.jobs.append(job)
        else:
            self._scheduler.give_back((job.item,))

    def withdraw(
        self, job: Job, reason: str = "it was cancelled", cause: Cause | None = Cause.CANCELLED
    ) -> None:
        """A job that ends before it was sent, or between two tries."""
        self._jobs.pop(job.item, None)
        now = time.time()
        outcome = Outcome(
            item=job.item,
            ending=Ending.DIED,
            started_at=now,
            ended_at=now,
            reason=reason,
            cause=cause,
        )
        job.end(outcome, job)

    def give_up(self, job: Job, why: str) -> None:
        """An item that was to be tried again, and cannot be."""
        assert job.failure is not None
        self._picky.jobs.remove(job)
        self._jobs.pop(job.item)
        job.end(last_word(job, job.failure, RetryVerdict(again=False, reason=why)), job)


def _note(job: Job, outcome: Outcome, slot: Slot) -> None:
    attempt = Attempt(
        device_id=slot.device.device_id,
        slot=slot.number,
        ending=outcome.ending,
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        reason=outcome.reason,
        cause=outcome.cause,
        memory_bytes=slot.memory_bytes,
        names=outcome.names,
    )
    job.attempts = (*job.attempts, attempt)
