"""An item on its way, and a slot that takes it: what the dispatcher keeps of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.job import Attempt, Outcome, SlotChunk

if TYPE_CHECKING:
    from exo.gpu.vocabulary.device import GPUDevice


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
    command: Callable[[int, GPUDevice], str] | None = None
    """The shell's text, given the number and the device of the slot that takes it."""
    device_id: str | None = None
    """At its first try only a slot of this device takes it."""
    chunk: int | None = None
    """How many of its kind a slot takes at once; None: the scheduler decides."""
    deadline_seconds: float | None = None
    """How long each try may take."""
    on_chunk: Callable[[SlotChunk, Callable[[int], None]], None] | None = None
    """The function yields: hears each chunk, with what lets the function be so many more ahead."""
    attempts: tuple[Attempt, ...] = ()
    begun: bool = False
    chunks: int = 0
    """How many were heard; with the first one, there is no other try."""
    cancelled: bool = False
    failure: Outcome | None = None
    """Of the last try, where there is to be another one."""
    memory_bytes: int | None = None
    """What a further try asks for; None: as much as the first one."""
    without_devices: tuple[str, ...] = ()
    """Where a further try does not go."""


class LiveSlot:
    """A slot as the dispatcher sees it."""

    __slots__ = (
        "busy",
        "device",
        "extra",
        "items",
        "memory_bytes",
        "number",
        "retiring",
        "sent_at",
        "sent_items",
        "work_id",
    )

    def __init__(
        self, number: int, device: GPUDevice, memory_bytes: int | None, *, extra: bool = False
    ) -> None:
        self.number = number
        self.device = device
        self.memory_bytes = memory_bytes
        self.extra = extra  # opened for items that need more than the others
        self.retiring = False  # it gets no more work, and is closed once it has none
        self.busy = True  # until its first process is ready
        self.sent_at = 0.0
        self.sent_items = 0
        self.work_id = -1
        self.items: tuple[int, ...] = ()
