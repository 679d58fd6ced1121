"""The slots of one executor: leased and opened, retired and closed again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from exo.gpu.coordination.cargo import Slot
from exo.gpu.coordination.slots import acquire_slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotEvent, SlotOutput, SlotSetup
    from exo.gpu.vocabulary.request import Request


class SlotPool:
    """Slots of a node under leases of a request; opening them is the first thing that is done.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.

    """

    def __init__(
        self,
        node: Node,
        request: Request,
        *,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        slots: int | None = None,
        wait_seconds: float | None = None,
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> None:
        self.slots: dict[int, Slot] = {}
        """Those that are open, by number."""
        self.devices: dict[int, GPUDevice] = {}
        """Of every slot that ever was open."""
        self.retiring = False
        """Whether any slot gets no more work."""
        self._node = node
        self._setup = setup
        self._sink = sink
        self._on_output = on_output
        self.left_out = self._open_all(request, slots, wait_seconds)
        """Devices that would do, but that the class and runtime rules leave out."""

    def _open_all(
        self, request: Request, slots: int | None, wait_seconds: float | None
    ) -> tuple[Refusal, ...]:
        acquired, decision = acquire_slots(
            self._node, request, slots=slots, wait_seconds=wait_seconds
        )
        waiting = deque(acquired)
        try:
            while waiting:
                lease_id, device = waiting[0]
                self._begin(lease_id, device, request.memory_bytes, extra=False)
                waiting.popleft()
        except BaseException:
            self._node.close_slots(tuple(self.slots), kill=True)
            for lease_id, _ in waiting:
                self._node.release(lease_id)
            raise
        return decision.left_out

    def open(
        self, lease_id: str, device: GPUDevice, memory_bytes: int | None, *, extra: bool
    ) -> None:
        """Open one more slot under a lease, which is let go of where that fails."""
        try:
            self._begin(lease_id, device, memory_bytes, extra=extra)
        except BaseException:
            self._node.release(lease_id)
            raise

    def _begin(
        self, lease_id: str, device: GPUDevice, memory_bytes: int | None, *, extra: bool
    ) -> None:
        words = (lease_id, self._setup, self._sink)
        if self._on_output is None:
            number = self._node.open_slot(*words)
        else:
            number = self._node.open_slot(*words, self._on_output)
        self.slots[number] = Slot(number, device, memory_bytes, extra=extra)
        self.devices[number] = device

    def retire(self, device_id: str) -> None:
        """Give the slots of a device no more work."""
        for slot in self.slots.values():
            if slot.device.device_id == device_id:
                slot.retiring = self.retiring = True

    def retire_extra(self) -> None:
        """Give the slots that were opened for the sake of single items no more work."""
        for slot in self.slots.values():
            slot.retiring = slot.retiring or slot.extra
            self.retiring = self.retiring or slot.retiring

    def close(self, number: int) -> Slot:
        """Close one slot, and let go of its lease."""
        slot = self.slots.pop(number)
        self._node.close_slots((number,))
        return slot

    def without_work(self) -> list[Slot]:
        """Slots that retire and have nothing left to do."""
        self.retiring = any(slot.retiring for slot in self.slots.values())
        return [slot for slot in self.slots.values() if slot.retiring and not slot.busy]
