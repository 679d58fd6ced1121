"""The slots that a dispatcher holds: opened under leases, retired, and traded for larger ones."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.cargo import Slot
from exo.gpu.coordination.items import Job
from exo.gpu.coordination.picky_jobs import SlotView
from exo.gpu.coordination.slots import acquire_for_all

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from exo.gpu.coordination.picky_jobs import PickyJobs
    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup
    from exo.gpu.vocabulary.request import Request


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What :meth:`OpenSlots.make_room` did."""

    closed: tuple[Slot, ...] = ()
    hopeless: Job | None = None
    """One that cannot get what it needs, for this reason."""
    why: str = ""


class OpenSlots:
    """Slots by number. All calls come from one thread."""

    def __init__(
        self,
        node: Node,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None,
    ) -> None:
        self.live: dict[int, Slot] = {}
        self.devices: dict[int, GPUDevice] = {}
        """Also of those that are closed."""
        self.left_out: tuple[Refusal, ...] = ()
        """Devices that would do, but that the class and runtime rules leave out."""
        self.retiring = False
        """Whether any slot is to be closed once it has no work."""
        self._node = node
        self._setup = setup
        self._sink = sink
        self._on_output = on_output

    def open(
        self, lease_id: str, device: GPUDevice, memory_bytes: int | None, *, extra: bool = False
    ) -> None:
        """Start a slot under a lease, which is let go of where that fails."""
        output = () if self._on_output is None else (self._on_output,)
        try:
            number = self._node.open_slot(lease_id, self._setup, self._sink, *output)
        except BaseException:
            self._node.release(lease_id)
            raise
        self.live[number] = Slot(number, device, memory_bytes, extra=extra)
        self.devices[number] = device

    def open_all(
        self, requests: tuple[Request, ...], slots: int | None, wait_seconds: float | None
    ) -> None:
        """Lease and open what each request allows, the preferred device's first; at least one's.

        Raises:
            NeverAvailable: when no device here can ever satisfy any of them.
            NotNow: when one could, but not at the moment, or not before the wait was over.

        """
        acquired, self.left_out = acquire_for_all(
            self._node, requests, slots=slots, wait_seconds=wait_seconds
        )
        waiting = deque(acquired)
        try:
            while waiting:
                lease_id, device = waiting.popleft()
                self.open(lease_id, device, requests[0].memory_bytes)
        except BaseException:
            self.close(kill=True)
            for lease_id, _ in waiting:
                self._node.release(lease_id)
            raise

    def retire(self, device_id: str) -> None:
        """Give the slots of a device no more work."""
        for slot in self.live.values():
            if slot.device.device_id == device_id:
                slot.retiring = self.retiring = True

    def close(self, *, kill: bool) -> None:
        """End all."""
        self._node.close_slots(tuple(self.live), kill=kill)

    def drop(self, number: int) -> Slot:
        """End one."""
        slot = self.live.pop(number)
        self._node.close_slots((number,))
        return slot

    def has(self, device: GPUDevice) -> bool:
        """Whether a slot of this device is left."""
        return any(slot.device.device_id == device.device_id for slot in self.live.values())

    def make_room(self, picky: PickyJobs, lost: Collection[str], *, work_left: bool) -> Changes:
        """Close retired slots that have no work; open what items wait for that no slot can take.

        ``lost`` devices do not come back; ``work_left`` says whether ordinary items wait.
        """
        done = [slot for slot in self.live.values() if slot.retiring and not slot.busy]
        for slot in done:
            self.drop(slot.number)
            if not slot.extra and slot.device.device_id not in lost:
                picky.retired.append(slot.device.device_id)
        look = picky.look(
            [
                SlotView(
                    slot.device.device_id, slot.memory_bytes, slot.busy, slot.retiring, slot.extra
                )
                for slot in self.live.values()
            ],
            next(iter(self.devices.values())).runtime,
            work_left=work_left,
        )
        for opening in look.open:
            self.open(opening.lease_id, opening.device, opening.memory_bytes, extra=opening.extra)
        for slot in self.live.values():
            if look.close_extra and slot.extra:
                slot.retiring = True
        for device_id in look.retire:
            self.retire(device_id)
        self.retiring = any(slot.retiring for slot in self.live.values())
        return Changes(closed=tuple(done), hopeless=look.hopeless, why=look.why)
