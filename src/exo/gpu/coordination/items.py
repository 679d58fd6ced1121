"""An item on its way: what the dispatcher keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.job import Attempt, Outcome, SlotChunk
from exo.gpu.vocabulary.parcel import Parcel

if TYPE_CHECKING:
    from exo.gpu.vocabulary.device import GPUDevice


class Function(msgspec.Struct, frozen=True, eq=False):
    """A function that many items share: it is sent to a slot once."""

    number: int
    payload: bytes | Parcel
    name: str = ""
    """With its module, for people and for the journal."""


class Job(msgspec.Struct, eq=False):
    """One item on its way: what to send, whom to tell, and the tries so far.

    ``begin`` is asked once, right before the item is first sent, and may withdraw it by
    returning False. ``end`` is told exactly once, unless it was withdrawn.
    """

    item: int
    begin: Callable[[], bool]
    end: Callable[[Outcome, Job], None]
    payload: bytes | Parcel = b""
    is_single: bool = False
    """Whether the payload is the function's only argument, and not the tuple of all."""
    kind: Hashable = None
    """What tells it from items that take another time, such as those of another function."""
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

    def wanted(self) -> bool:
        """Whether it is still to run; asked of whoever gave it once."""
        if not self.begun:
            self.begun = self.begin()
        return self.begun
