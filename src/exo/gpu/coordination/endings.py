"""What becomes of an attempt that failed: the pure verdict asked for, told and put into words."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.scheduling.filters import slots_of
from exo.gpu.scheduling.ledger import memory_figures
from exo.gpu.scheduling.retry import (
    OUT_OF_MEMORY,
    RetryPolicy,
    RetryVerdict,
    Room,
    decide,
)
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import ExoGpuError
from exo.gpu.vocabulary.job import Cause, Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.items import Job
    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

logger = logging.getLogger(__name__)

NO_RETRY = RetryVerdict(again=False)


class Endings:
    """Judges attempts under one policy; :attr:`lost` are the devices that turned out gone."""

    def __init__(
        self,
        node: Node,
        requests: tuple[Request, ...],
        policy: RetryPolicy,
        *,
        on_retry: Callable[[Job, str], None] | None,
        on_device_lost: Callable[[GPUDevice, str], None] | None,
    ) -> None:
        self.lost: set[str] = set()
        self._node = node
        self._requests = requests
        self._policy = policy
        self._on_retry = on_retry
        self._on_device_lost = on_device_lost

    def judge(self, job: Job, *, alone: bool) -> RetryVerdict:
        """What to do about a job whose last attempt failed; tells of it."""
        last = job.attempts[-1]
        asks = last.cause in OUT_OF_MEMORY or last.cause is Cause.DEVICE_LOST
        now, ever = self._rooms(last.device_id) if asks else ((), ())
        verdict = decide(job.attempts, self._policy, now, alone=alone)
        if not verdict.again and last.cause in OUT_OF_MEMORY:
            verdict = decide(job.attempts, self._policy, ever, alone=alone)
        if verdict.cordon and last.device_id not in self.lost:
            self.lost.add(last.device_id)
            self._tell_loss(last.device_id, last.reason)
        if verdict.again and verdict.reason:
            words = f"on {last.device_id}: {last.reason}; {verdict.reason}"
            logger.warning("an item is tried again, %s", words)
            if self._on_retry is not None:
                self._on_retry(job, words)
        return verdict

    def _tell_loss(self, device_id: str, reason: str) -> None:
        logger.warning("%s is lost and gets no more work: %s", device_id, reason)
        if self._on_device_lost is None:
            return
        for device in self._node.inventory().devices:
            if device.device_id == device_id:
                try:
                    self._on_device_lost(device, reason)
                except (ExoGpuError, OSError) as error:  # the work goes on without it
                    logger.warning("%s cannot be cordoned: %s", device_id, error)

    def _rooms(self, present: str) -> tuple[tuple[Room, ...], tuple[Room, ...]]:
        """The devices that the request allows, busy ones too, of the runtime of the present one.

        With what could be had there once our own leases are given back, and with the most that
        anybody could ever have.
        """
        snapshot = self._node.snapshot()
        runtimes = {one.device.device_id: one.device.runtime for one in snapshot.devices}
        own = (one for one in self._requests if one.runtime == runtimes.get(present))
        request = next(own, self._requests[0])
        any_size = msgspec.structs.replace(request, count=1, memory_bytes=None)
        decision = select(snapshot, any_size)
        mixed = request.all_devices or bool(request.devices)
        left_out = {refusal.device_id for refusal in decision.left_out}
        allowed = {score.device_id for score in decision.ranking}
        allowed |= {one.device_id for one in decision.refusals if not one.permanent}
        states = [
            state
            for state in snapshot.devices
            if state.device.device_id in allowed - left_out | {present}
            and (mixed or runtimes[state.device.device_id] == runtimes.get(present))
        ]
        slots = [slots_of(state, request) for state in states]
        ever = [memory_figures(state, snapshot)[2] for state in states]
        now = [_reachable(state, snapshot) for state in states]
        return tuple(map(_room, states, slots, now)), tuple(map(_room, states, slots, ever))


def _room(state: DeviceState, slots: int, memory_bytes: int | None) -> Room:
    on_device = state.device.memory_pool != HOST_POOL
    return Room(state.device.device_id, memory_bytes, slots, on_device)


def _reachable(state: DeviceState, snapshot: Snapshot) -> int | None:
    """What is free on a device, and what leases of this program hold there."""
    free, _, most = memory_figures(state, snapshot)
    if free is None or most is None:
        return most
    ours = sum(lease.memory_bytes or 0 for lease in state.leases if lease.pid == os.getpid())
    return min(most, max(0, free) + ours)


def last_word(job: Job, outcome: Outcome, verdict: RetryVerdict) -> Outcome:
    """The outcome that is told at the end, with what was tried and why no more is."""
    parts = [verdict.reason] if verdict.reason else []
    if len(job.attempts) > 1 or (outcome.ending is Ending.DIED and verdict.reason):
        tries = "; ".join(f"on {tried.device_id}: {tried.reason}" for tried in job.attempts)
        parts = [verdict.reason or f"it was tried {len(job.attempts)} times", f"({tries})"]
        return msgspec.structs.replace(outcome, reason=" ".join(parts))
    reason = "; ".join((*filter(None, (outcome.reason,)), *parts))
    return msgspec.structs.replace(outcome, reason=reason)
