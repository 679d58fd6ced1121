"""Items that not every slot can take, because they need more memory now or shun a device.

A lease of their size is taken where one is free; else the slots of a device are closed one after
the other as they come free, until it is. Once no such item is left, they are opened again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.items import Job
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.request import Request

LOOK_SECONDS = 0.5
"""How often a lease that others hold is asked for again."""

# With nothing else of ours at work, others' leases are waited for so long.
PATIENCE_SECONDS = 60.0


class SlotView(msgspec.Struct, frozen=True):
    """What of a slot counts here."""

    device_id: str
    memory_bytes: int | None
    busy: bool
    retiring: bool
    """It is closed once it has no work."""
    extra: bool
    """It was opened for items that need more than the others."""


class Opening(msgspec.Struct, frozen=True):
    """A lease that was taken, for a slot to be opened under it."""

    lease_id: str
    device: GPUDevice
    memory_bytes: int | None
    extra: bool


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now; empty where there is only to wait."""

    open: tuple[Opening, ...] = ()
    retire: tuple[str, ...] = ()
    """Devices whose slots are to be closed as they come free."""
    hopeless: Job | None = None
    """One that cannot get what it needs, for this reason."""
    why: str = ""
    close_extra: bool = False


class PickyJobs:
    """Those that wait, and the devices whose slots were closed for them."""

    def __init__(self, node: Node, request: Request) -> None:
        self.jobs: list[Job] = []
        self.retired: list[str] = []
        """Ids of devices, one for each slot that was closed."""
        self._node = node
        self._request = request
        self._next_look = 0.0
        self._waiting_since: float | None = None

    @property
    def look_seconds(self) -> float | None:
        """How long to wait for events before :meth:`look`; None where nothing is to be had."""
        return LOOK_SECONDS if self.jobs or self.retired else None

    def take(self, device_id: str, memory_bytes: int | None) -> Job | None:
        """The first one that a slot of this device and size can do."""
        for place, job in enumerate(self.jobs):
            if _fits(job, device_id, memory_bytes):
                return self.jobs.pop(place)
        return None

    def look(self, slots: Sequence[SlotView], runtime: str, *, work_left: bool) -> Look:
        """What to do for the first one that no slot fits, or where none is left, to go back."""
        now = time.monotonic()
        open_slots = [slot for slot in slots if not slot.retiring]
        unmet = [
            job
            for job in self.jobs
            if not any(_fits(job, slot.device_id, slot.memory_bytes) for slot in open_slots)
        ]
        if now < self._next_look:
            return Look()
        if unmet:
            # What serves the largest serves the others too.
            largest = max(unmet, key=lambda job: job.memory_bytes or 0)
            return self._make_room(largest, slots, runtime, now)
        if self.jobs or not self.retired or not work_left:
            return Look()
        if any(slot.extra for slot in open_slots):
            return Look(close_extra=True)
        return self._go_back(slots, now)

    def _make_room(self, job: Job, slots: Sequence[SlotView], runtime: str, now: float) -> Look:
        request = self._request_of(job, runtime)
        grant = self._node.acquire(request, wait_seconds=0)
        if grant.lease_ids:
            self._waiting_since = None
            device = self._device(grant.decision.chosen[0])
            return Look(open=(Opening(grant.lease_ids[0], device, request.memory_bytes, True),))
        if grant.decision.never:
            return Look(hopeless=job, why="no device can ever give it that much")
        could = _could(grant.decision)
        if any(slot.retiring and slot.device_id in could for slot in slots):
            return Look()
        ours = [slot for slot in slots if slot.device_id in could]
        if any(slot.extra and self._is_wanted(slot) for slot in ours):
            return Look()  # first it does what it was opened for
        if ours:
            # One with nothing to do first: closing it costs nobody a wait.
            return Look(retire=(min(ours, key=lambda slot: slot.busy).device_id,))
        self._next_look = now + LOOK_SECONDS
        if self._is_patient(slots, now):
            return Look()
        size = format_size(request.memory_bytes)
        return Look(hopeless=job, why=f"{size} could not be had in {PATIENCE_SECONDS:g} s")

    def _is_wanted(self, slot: SlotView) -> bool:
        return any(_fits(job, slot.device_id, slot.memory_bytes) for job in self.jobs)

    def _go_back(self, slots: Sequence[SlotView], now: float) -> Look:
        opened: list[Opening] = []
        busy: set[str] = set()
        for device_id in tuple(self.retired):
            if device_id in busy:
                continue
            single = msgspec.structs.replace(
                self._request,
                count=1,
                devices=(device_id,),
                runtime=None,
                device_class=None,
                all_devices=False,
            )
            grant = self._node.acquire(single, wait_seconds=0)
            if grant.lease_ids:
                device = self._device(device_id)
                memory_bytes = self._request.memory_bytes
                opened.append(Opening(grant.lease_ids[0], device, memory_bytes, False))
            if grant.lease_ids or grant.decision.never:
                self.retired.remove(device_id)
            else:
                busy.add(device_id)
        self._next_look = now + LOOK_SECONDS
        if not opened and not slots and not self._is_patient(slots, now):
            self.retired.clear()
        return Look(open=tuple(opened))

    def _is_patient(self, slots: Sequence[SlotView], now: float) -> bool:
        if any(slot.busy for slot in slots) or self._waiting_since is None:
            self._waiting_since = now
        return now < self._waiting_since + PATIENCE_SECONDS

    def _request_of(self, job: Job, runtime: str) -> Request:
        own = self._request
        free = own.all_devices or own.devices or own.runtime
        return msgspec.structs.replace(
            own,
            count=1,
            memory_bytes=job.memory_bytes or own.memory_bytes,
            without_devices=(*own.without_devices, *job.without_devices),
            runtime=own.runtime if free else runtime,
        )

    def _device(self, device_id: str) -> GPUDevice:
        devices = self._node.inventory().devices
        return next(device for device in devices if device.device_id == device_id)


def _fits(job: Job, device_id: str, memory_bytes: int | None) -> bool:
    if device_id in job.without_devices:
        return False
    return job.memory_bytes is None or (memory_bytes or 0) >= job.memory_bytes


def _could(decision: Decision) -> set[str]:
    return {refusal.device_id for refusal in decision.refusals if not refusal.permanent}
