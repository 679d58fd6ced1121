"""Shell commands by the million over the devices that suit them, each in a fresh process."""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.dispatcher import Dispatcher, Job
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.job import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request

# Commands pulled ahead of those that run, so that no slot waits for the source.
PULLED_AHEAD = 2

# An interrupt that comes right before a wait without an end is noticed at its end; so end it.
INTERRUPT_SECONDS = 0.5


class CommandDone(msgspec.Struct, frozen=True):
    """One command that ended; ``index`` counts from 0 in the order of the source."""

    index: int
    command: str
    device_id: str | None
    """None for one that the end of everything overtook before a device began it."""
    outcome: Outcome


class CommandRun:
    """Runs commands from an iterable as slots come free; iterate it for those that ended.

    The source is read only a little ahead of what runs, and what ended waits for the reader, so
    that millions of commands need no memory. Use it in a ``with`` block: leaving it early ends
    what still runs.

    With ``wait_seconds`` the first device is waited for in the line.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.

    """

    def __init__(
        self,
        commands: Iterable[str],
        *,
        request: Request,
        node: Node | None = None,
        slots: int | None = None,
        wait_seconds: float | None = None,
    ) -> None:
        self._dispatcher = Dispatcher(
            node or LocalNode(),
            request,
            setup=None,
            slots=slots,
            own_node=node is None,
            wait_seconds=wait_seconds,
        )
        self._ended: queue.SimpleQueue[CommandDone | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(PULLED_AHEAD * len(self._dispatcher.lanes))
        self._stopped = False
        self._pulled = self._seen = 0
        self._expected: int | None = None
        self._feeder = threading.Thread(
            target=self._feed, args=(commands,), name="exo-gpu-feed", daemon=True
        )
        # An interrupt may come before the reader's ``with`` block: nothing runs on after us.
        atexit.register(self.close)
        self._feeder.start()

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices in use, the preferred one first."""
        return self._dispatcher.devices

    @property
    def slots(self) -> int:
        """How many commands run at once."""
        return len(self._dispatcher.lanes)

    @property
    def left_out(self) -> tuple[Refusal, ...]:
        """Devices that would do, but that the class and runtime rules leave out."""
        return self._dispatcher.left_out

    def __enter__(self) -> CommandRun:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[CommandDone]:
        """The commands that ended, in that order; an error of the source is raised here."""
        while self._expected is None or self._seen < self._expected:
            try:
                done = self._ended.get(timeout=INTERRUPT_SECONDS)
            except queue.Empty:
                continue
            if isinstance(done, CommandDone):
                self._seen += 1
                self._room.release()
                yield done
            elif done is None:
                self._expected = self._pulled
            else:
                self._expected = self._seen
                raise done
        self.close()

    def close(self) -> None:
        """End what still runs and let go of the leases; harmless twice."""
        self._stopped = True
        self._room.release()
        self._dispatcher.close(kill=True)
        atexit.unregister(self.close)

    def _feed(self, commands: Iterable[str]) -> None:
        try:
            for index, command in zip(itertools.count(), commands, strict=False):
                self._room.acquire()
                if self._stopped:
                    return
                self._pulled += 1
                self._dispatcher.add([self._job(index, command)])
        except Exception as error:  # noqa: BLE001 - whatever the source raises is the reader's
            self._ended.put(error)
        else:
            self._ended.put(None)

    def _job(self, index: int, command: str) -> Job:
        def end(outcome: Outcome, job: Job) -> None:
            device_id = job.attempts[-1].device_id if job.attempts else None
            self._ended.put(CommandDone(index, command, device_id, outcome))

        return Job(item=index, begin=lambda: True, end=end, command=command)


def map_commands(
    commands: Iterable[str],
    *,
    request: Request,
    node: Node | None = None,
    slots: int | None = None,
    wait_seconds: float | None = None,
) -> CommandRun:
    """Run shell commands over the devices that a request allows; see :class:`CommandRun`."""
    return CommandRun(commands, request=request, node=node, slots=slots, wait_seconds=wait_seconds)
