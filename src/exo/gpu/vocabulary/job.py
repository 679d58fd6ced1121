"""An item given to the executor, its tries, how they ended, and what a slot says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Final, Protocol

import msgspec

from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.parcel import Batch, Parcel


class Ending(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The function raised, or the command's status was not 0."""
    DIED = "died"
    """The process was gone before it reported."""


class Cause(StrEnum):
    """Why an attempt did not succeed."""

    EXCEPTION = "exception"
    """The function raised, and nothing below says it better."""
    EXIT_STATUS = "exit_status"
    """The command's status was not 0, and nothing below says it better."""
    OUT_OF_DEVICE_MEMORY = "out_of_device_memory"
    OUT_OF_HOST_MEMORY = "out_of_host_memory"
    """The machine's memory, a limit on it, or the kernel's killer."""
    DEVICE_LOST = "device_lost"
    TIMEOUT = "timeout"
    """It ran for longer than it may."""
    CANCELLED = "cancelled"
    KILLED = "killed"
    """A signal of somebody else ended the process."""
    CLOSED = "closed"
    """The process went, or closed its connection, without a report; with status 0 too."""
    UNRESPONSIVE = "unresponsive"
    """The process was there, but did not answer any more and was ended."""
    COLLATERAL = "collateral"
    """The process was ended on account of another item that was sent with this one."""
    NOT_STARTED = "not_started"
    """No process could be started for it."""


class Skipped(Enum):
    """What stands in the place of a result that there is not."""

    DONE_BEFORE = "done before"

    def __repr__(self) -> str:
        """The public name."""
        return f"exo.gpu.{self.name}"


DONE_BEFORE: Final = Skipped.DONE_BEFORE
"""In the results of a map with a journal: the item was done by an earlier run, and not again."""


class SlotState(StrEnum):
    """What a slot is doing."""

    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    DRAINING = "draining"
    """It ends after what it runs."""
    STOPPED = "stopped"
    FAILED = "failed"
    """It is given up."""


class Attempt(WireValue, frozen=True, kw_only=True):
    """One try at an item on one device. Times are Unix seconds; ``reason`` is for people."""

    device_id: str
    slot: int
    ending: Ending
    started_at: float
    ended_at: float
    reason: str = ""
    cause: Cause | None = None
    """None for one that succeeded."""
    memory_bytes: int | None = None
    """What it had of the device's memory; None: not declared."""
    names: tuple[str, ...] = ()
    """What it can be told by: the exception's classes with their modules, the exit status."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.started_at


class SlotSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What every process of a slot is told before its first item."""

    import_path: tuple[str, ...] = ()
    """``sys.path`` of the caller, so that its functions can be found by name."""
    directory: str = ""
    """Where they start; empty: where what starts them is."""
    initializer: bytes | None = None
    """Pickled (function, arguments), called once in each process."""
    max_tasks_per_worker: int | None = None
    """A process is replaced after so many items; 1: a fresh one for each. None: never."""
    start_seconds: float | None = None
    """How long a process may take until it is ready, its initializer included; None: for ever."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot is asked to do next: items of a function, or one shell command.

    ``items`` are item numbers. Of a function, ``payloads`` are its pickled arguments in the same
    order, ``function`` its number and ``function_payload`` its pickle; without a number each
    payload holds its own function. Of a command, ``command`` is the shell's text.
    """

    work_id: int
    items: Sequence[int]
    payloads: tuple[bytes, ...] = ()
    batch: Batch | None = None
    """In place of ``payloads``: the same, ready to be sent."""
    is_single: bool = False
    """Whether each payload is the function's only argument, and not the tuple of all."""
    function: int | None = None
    function_payload: bytes | Parcel = b""
    command: str | None = None
    deadline_seconds: float | None = None
    """How long each item may run; None: for ever."""
    stream: bool = False
    """The function yields chunks, each of which is reported as it comes."""
    credits: int = 0
    """Of a stream: how many chunks it may be ahead of :class:`SlotChunk`'s reader."""


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
    payload: bytes | Parcel = b""
    reason: str = ""
    exit_status: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    held_stdout: HeldOutput | None = None
    """Instead of ``stdout`` where that is much; whoever reads it closes it."""
    held_stderr: HeldOutput | None = None
    cause: Cause | None = None
    """None for one that succeeded."""
    names: tuple[str, ...] = ()
    """As :attr:`Attempt.names`."""


class SlotReady(msgspec.Struct, frozen=True):
    """A process of the slot can take work."""

    slot_id: int
    pid: int


class SlotOutcomes(msgspec.Struct, frozen=True):
    """Items of the slot's work ended."""

    slot_id: int
    outcomes: Sequence[Outcome]


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
    cause: Cause = Cause.CLOSED
    """Of the items that are unfinished."""


class SlotFailed(msgspec.Struct, frozen=True):
    """The slot is given up: its processes do not start. ``unfinished`` was never begun."""

    slot_id: int
    reason: str
    unfinished: tuple[int, ...] = ()


class SlotRecalled(msgspec.Struct, frozen=True):
    """These items of the slot's work were taken back before they began; the others go on."""

    slot_id: int
    work_id: int
    items: tuple[int, ...]


class SlotAcknowledged(msgspec.Struct, frozen=True):
    """The process took up a stream."""

    slot_id: int
    work_id: int


class SlotChunk(msgspec.Struct, frozen=True):
    """One chunk of a stream, counted from 0; ``payload`` is its pickle."""

    slot_id: int
    item: int
    number: int
    payload: bytes


class SlotOutput(msgspec.Struct, frozen=True):
    """What a process printed, as it came; ``item`` is what it was at, None between two."""

    slot_id: int
    item: int | None
    is_stderr: bool
    data: bytes


SlotEvent = (
    SlotReady
    | SlotOutcomes
    | SlotIdle
    | SlotDied
    | SlotFailed
    | SlotRecalled
    | SlotAcknowledged
    | SlotChunk
)
