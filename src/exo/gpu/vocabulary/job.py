"""An item given to the executor, its tries, and how they ended."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from exo.gpu.vocabulary.messages import WireValue


class Ending(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised, or the command's status was not 0."""
    DIED = "died"
    """The process was gone before it reported."""
    CANCELLED = "cancelled"


class Attempt(WireValue, frozen=True, kw_only=True):
    """One try at an item on one device. Times are Unix seconds; ``reason`` is for people."""

    device_id: str
    ending: Ending
    started_at: float
    ended_at: float
    slot: int = 0
    reason: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot is asked to do: some items of one function, or one shell command.

    ``items`` are job numbers. For a function, ``payload`` is the pickled list of
    arguments in the same order and ``function`` names the function that the slot was sent before.
    For a command, ``command`` is the shell's text and ``items`` has one number.
    """

    work_id: int
    items: tuple[int, ...]
    function: int | None = None
    payload: bytes = b""
    command: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one item ended on a slot; for a function ``payload`` is the pickled result or error."""

    item: int
    ending: Ending
    started_at: float
    ended_at: float
    payload: bytes = b""
    reason: str = ""
    exit_status: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
