"""An item given to the executor, its tries, how they ended, and what a slot says of itself."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from exo.gpu.vocabulary.messages import WireValue


class Ending(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised, or the command's status was not 0."""
    DIED = "died"
    """The process was gone before it reported."""


class Attempt(WireValue, frozen=True, kw_only=True):
    """One try at an item on one device. Times are Unix seconds; ``reason`` is for people."""

    device_id: str
    slot: int
    ending: Ending
    started_at: float
    ended_at: float
    reason: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at


class SlotSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What every process of a slot is told before its first item."""

    import_path: tuple[str, ...] = ()
    """``sys.path`` of the caller, so that its functions can be found by name."""
    initializer: bytes | None = None
    """Pickled (function, arguments), called once in each process."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot is asked to do next: items of a function, or one shell command.

    ``items`` are item numbers. Of a function, ``payloads`` are its pickled arguments in the same
    order, ``function`` its number and ``function_payload`` its pickle; without a number each
    payload holds its own function. Of a command, ``command`` is the shell's text.
    """

    work_id: int
    items: tuple[int, ...]
    payloads: tuple[bytes, ...] = ()
    function: int | None = None
    function_payload: bytes = b""
    command: str | None = None
    deadline_seconds: float | None = None
    """How long a command may take before it is ended; None: as long as it likes."""


class HeldOutput(Protocol):
    """What a command printed, where it is too much to hold in memory; gone once it is closed."""

    size_bytes: int

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end."""
        ...

    def close(self) -> None:
        """Let go of it; harmless twice."""
        ...


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one item ended; times are Unix seconds.

    Of a function, ``payload`` is the pickled result, or what :func:`pickle_error` of the worker
    made of the exception. Of a command, ``exit_status`` counts as in ``subprocess``.
    """

    item: int
    ending: Ending
    started_at: float
    ended_at: float
    payload: bytes = b""
    reason: str = ""
    exit_status: int | None = None
    timed_out: bool = False
    """Whether it was ended because it took too long."""
    stdout: bytes = b""
    stderr: bytes = b""
    held_stdout: HeldOutput | None = None
    """Instead of ``stdout`` where that is much; whoever reads it closes it."""
    held_stderr: HeldOutput | None = None


class SlotReady(msgspec.Struct, frozen=True):
    """A process of the slot can take work."""

    slot_id: int
    pid: int


class SlotOutcomes(msgspec.Struct, frozen=True):
    """Items of the slot's work ended."""

    slot_id: int
    outcomes: tuple[Outcome, ...]


class SlotIdle(msgspec.Struct, frozen=True):
    """All items of the work have been reported."""

    slot_id: int
    work_id: int


class SlotDied(msgspec.Struct, frozen=True):
    """The slot's process is gone; ``unfinished`` items of its work were not reported."""

    slot_id: int
    work_id: int
    unfinished: tuple[int, ...]
    reason: str
    at: float


class SlotFailed(msgspec.Struct, frozen=True):
    """The slot is given up: its processes do not start. ``unfinished`` was never begun."""

    slot_id: int
    reason: str
    unfinished: tuple[int, ...] = ()


SlotEvent = SlotReady | SlotOutcomes | SlotIdle | SlotDied | SlotFailed
