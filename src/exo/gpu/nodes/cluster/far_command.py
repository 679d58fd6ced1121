"""One command on another machine, for whoever waits for it here."""

from __future__ import annotations

import contextlib
import queue
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from exo.gpu.execution.handed_on import GRACE_SECONDS, run_handed_on
from exo.gpu.execution.payloads import dump, error_of, load_result
from exo.gpu.vocabulary.command_end import CommandEnd
from exo.gpu.vocabulary.errors import WorkerDied
from exo.gpu.vocabulary.job import (
    Cause,
    Ending,
    SlotDied,
    SlotFailed,
    SlotOutcomes,
    SlotOutput,
    SlotSetup,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.vocabulary.job import SlotEvent

# A signal that arrives just before a wait is seen at its end only: each is so short.
SIGNAL_SECONDS = 1.0

# A command that is told to end has its grace, and its worker a moment more.
STOP_SECONDS = GRACE_SECONDS + 2.0

_TIMED_OUT_STATUS = -15  # as its time limit ends a command here


class Slots(Protocol):
    """What of a node a command needs."""

    def open_slot(
        self,
        lease_id: str,
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> int:
        """Start a slot."""
        ...

    def submit(self, slot_id: int, work: Work) -> None:
        """Give it its work."""
        ...

    def cancel(self, slot_id: int, work_id: int, item: int | None = None) -> None:
        """Tell its work to end."""
        ...

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End it."""
        ...


def run_far(
    node: Slots,
    argv: Sequence[str],
    lease_id: str,
    changes: Mapping[str, str | None],
    *,
    timeout_seconds: float | None,
) -> CommandEnd:
    """Run a command under a lease to its end, and print what it prints as it comes.

    ``changes`` are those to the environment there. It starts in the directory of this process,
    where the node has it.

    Raises:
        WorkerDied: when it, or its node, was lost before it had ended.
        FileNotFoundError: when there is no such command there.
        PermissionError: when it may not be executed.

    """
    words: dict[str, object] = {}
    told = (tuple(argv), str(Path.cwd()), dict(changes), timeout_seconds)
    call = (run_handed_on, told, words)
    work = Work(
        work_id=0,
        items=(0,),
        payloads=(dump(call, "the command"),),
        # Should the worker itself not answer any more.
        deadline_seconds=None if timeout_seconds is None else timeout_seconds + STOP_SECONDS,
    )
    events: queue.SimpleQueue[SlotEvent] = queue.SimpleQueue()
    began = time.monotonic()
    slot = node.open_slot(lease_id, SlotSetup(), events.put, _print)
    try:
        node.submit(slot, work)
        status = _await_status(events)
    except KeyboardInterrupt:
        # It is told to end, and may save what it has.
        node.cancel(slot, work.work_id, 0)
        with contextlib.suppress(Exception):
            _await_status(events, until=time.monotonic() + STOP_SECONDS)
        raise
    finally:
        node.close_slots((slot,), kill=True)
    return CommandEnd(
        returncode=_TIMED_OUT_STATUS if status is None else status,
        seconds=time.monotonic() - began,
        timed_out=status is None,
    )


def _await_status(
    events: queue.SimpleQueue[SlotEvent], *, until: float = float("inf")
) -> int | None:
    """The status of the command; None where its time, or ours, was over."""
    while time.monotonic() < until:
        try:
            event = events.get(timeout=SIGNAL_SECONDS)
        except queue.Empty:
            continue
        if isinstance(event, SlotOutcomes):
            outcome = event.outcomes[0]
            if outcome.ending is Ending.SUCCEEDED:
                return load_result(outcome.payload)
            if outcome.cause is Cause.TIMEOUT:
                return None
            raise error_of(outcome)
        if isinstance(event, SlotDied) and event.cause is Cause.TIMEOUT:
            return None
        if isinstance(event, (SlotDied, SlotFailed)):
            raise WorkerDied(f"the command was cut off: {event.reason}")
    return None


def _print(output: SlotOutput) -> None:
    stream = sys.stderr.buffer if output.is_stderr else sys.stdout.buffer
    stream.write(output.data)
    stream.flush()
