"""What a dispatcher is handed: items on their way, and the functions that many of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.vocabulary.job import Attempt, Outcome


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
    command: str | None = None
    device_id: str | None = None
    """At its first try only a slot of this device takes it."""
    chunk: int | None = None
    """How many of its kind a slot takes at once; None: the scheduler decides."""
    attempts: tuple[Attempt, ...] = ()
    begun: bool = False

    def wanted(self) -> bool:
        """Whether it is to run; whoever handed it in is asked once."""
        if not self.begun:
            self.begun = self.begin()
        return self.begun
