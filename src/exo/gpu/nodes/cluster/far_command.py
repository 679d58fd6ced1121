"""One command on another machine, for whoever waits for it here."""

from __future__ import annotations

import queue
import shlex
import sys
import time
from typing import TYPE_CHECKING, Protocol

from exo.gpu.vocabulary.command_end import CommandEnd
from exo.gpu.vocabulary.errors import NodeLost
from exo.gpu.vocabulary.job import Cause, Outcome, SlotDied, SlotFailed, SlotOutcomes, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from exo.gpu.vocabulary.job import HeldOutput, SlotEvent, SlotOutput, SlotSetup

# Read and written at once.
PIECE_BYTES = 1024 * 1024

# A signal that arrives just before a wait is seen at its end only: each is so short.
SIGNAL_SECONDS = 1.0

_NOT_RUN_STATUS = 1


class FarNode(Protocol):
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

    def close_slots(self, slot_ids: tuple[int, ...], *, kill: bool = False) -> None:
        """End it."""
        ...

    def lease_device(self, lease_id: str) -> str:
        """What it runs on."""
        ...


def run_far(
    node: FarNode, argv: Sequence[str], lease_id: str, *, timeout_seconds: float | None
) -> CommandEnd:
    """Run a command under a lease to its end, and hand out what it printed.

    Raises:
        NodeLost: when its node was lost before it had ended.

    """
    device_id = node.lease_device(lease_id)
    events: queue.SimpleQueue[SlotEvent] = queue.SimpleQueue()
    slot = node.open_slot(lease_id, None, events.put)
    began = time.monotonic()
    try:
        command = f"exec {shlex.join(argv)}"
        work = Work(work_id=0, items=(0,), command=command, deadline_seconds=timeout_seconds)
        node.submit(slot, work)
        outcome = _await_outcome(events)
        _print(outcome.held_stdout, outcome.stdout, sys.stdout.buffer)
        _print(outcome.held_stderr, outcome.stderr, sys.stderr.buffer)
    finally:
        node.close_slots((slot,), kill=True)
    return CommandEnd(
        returncode=_NOT_RUN_STATUS if outcome.exit_status is None else outcome.exit_status,
        seconds=time.monotonic() - began,
        timed_out=outcome.cause is Cause.TIMEOUT,
        device_ids=(device_id,) if device_id else (),
    )


def _await_outcome(events: queue.SimpleQueue[SlotEvent]) -> Outcome:
    while True:
        try:
            event = events.get(timeout=SIGNAL_SECONDS)
        except queue.Empty:
            continue
        if isinstance(event, SlotOutcomes):
            return event.outcomes[0]
        if isinstance(event, (SlotDied, SlotFailed)):
            raise NodeLost(f"the command was cut off: {event.reason}")


def _print(held: HeldOutput | None, whole: bytes, stream: BinaryIO) -> None:
    if held is None:
        stream.write(whole)
    else:
        for offset in range(0, held.size_bytes, PIECE_BYTES):
            stream.write(held.read(offset, PIECE_BYTES))
        held.close()
    stream.flush()
