"""Shell commands by the million over the devices that suit them, each in a fresh process."""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.dispatcher import Dispatcher
from exo.gpu.coordination.items import Job
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import ExecutorClosed
from exo.gpu.vocabulary.job import Attempt, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from exo.gpu.nodes.transport import Node
    from exo.gpu.scheduling.retry import RetryPolicy
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request

# Commands pulled ahead of those that run, so that no slot waits for the source.
PULLED_AHEAD = 2

# A signal that arrives in the moment before a wait is seen at its end only: each is so short.
SIGNAL_SECONDS = 1.0


class Lane(msgspec.Struct, frozen=True):
    """A slot as its commands see it; ``number`` counts from 1 over all devices of a run."""

    number: int
    device: GPUDevice


class Command(msgspec.Struct, frozen=True):
    """One command of a source: its place there, from 0, and its text for the slot that runs it."""

    index: int
    text: Callable[[Lane], str]
    digest: int = 0
    """A checksum of its item, for the journal."""
    label: str = ""
    """What people call it, where they want to see that."""


class CommandDone(msgspec.Struct, frozen=True):
    """One command that ended; ``index`` counts from 0 in the order of the source."""

    index: int
    command: str
    device_id: str | None
    """None for one that the end of everything overtook before a device began it."""
    outcome: Outcome
    attempts: tuple[Attempt, ...] = ()
    """Every try at it, the last one included."""
    digest: int = 0
    label: str = ""
    turn: int = 0
    """Its place, from 0, among those that the source gave."""


class CommandRun:
    """Runs commands from an iterable as slots come free; iterate it for those that ended.

    The source is read only a little ahead of what runs, and what ended waits for the reader, so
    that millions of commands need no memory. The devices are held from the start, work begins
    with the first look at what ended. Use it in a ``with`` block, once: leaving it early ends what
    still runs.

    With ``wait_seconds`` the first device is waited for in the line. ``retry`` says what of the
    commands that fail is tried again, of which ``on_retry`` hears in words, and one that takes
    longer than ``timeout_seconds`` has failed. ``on_begin`` is called before each process of a
    command starts. Both are called on another thread, as is ``on_device_lost``, which hears of a
    device that a command found gone.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.

    """

    def __init__(
        self,
        commands: Iterable[str | Command],
        *,
        request: Request | tuple[Request, ...],
        node: Node | None = None,
        slots: int | None = None,
        wait_seconds: float | None = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float | None = None,
        on_begin: Callable[[Command], None] | None = None,
        on_retry: Callable[[int, str], None] | None = None,
        on_device_lost: Callable[[GPUDevice, str], None] | None = None,
    ) -> None:
        self._dispatcher = Dispatcher(
            node or LocalNode(),
            request,
            setup=None,
            slots=slots,
            own_node=node is None,
            wait_seconds=wait_seconds,
            retry=retry,
            on_retry=None if on_retry is None else lambda job, words: on_retry(job.item, words),
            on_device_lost=on_device_lost,
        )
        self._lanes = {
            slot: Lane(place, device)
            for place, (slot, device) in enumerate(self._dispatcher.lanes, start=1)
        }
        self._timeout_seconds = timeout_seconds
        self._on_begin = on_begin
        self._ended: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._roomy_for = len(self._lanes)
        self._room = threading.Semaphore(PULLED_AHEAD * self._roomy_for)
        self._closed = self._winding_down = False
        self._door = threading.Lock()  # between pulling one more and the last one pulled
        self._pulled = self._seen = 0
        self._expected: int | None = None
        self._feeder = threading.Thread(
            target=self._feed, args=(commands,), name="exo-gpu-feed", daemon=True
        )
        # An interrupt may come before the reader's ``with`` block: nothing runs on after us.
        atexit.register(self.close)

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices in use, the preferred one first."""
        return self._dispatcher.devices

    @property
    def slots(self) -> int:
        """How many commands run at once."""
        return len(self._lanes)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Every slot, in the order of preference."""
        return tuple(self._lanes.values())

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
        """The commands that ended, in that order; the first call begins the work.

        An error of the source is raised here, once what had begun has ended.
        """
        failure: Exception | None = None
        self._feeder.start()
        while self._expected is None or self._seen < self._expected:
            self._make_room()
            try:
                done = self._ended.get(timeout=SIGNAL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(done, _SourceEnded):
                self._expected = self._pulled if self._expected is None else self._expected
                failure = failure or done.error
                continue
            if isinstance(done, Exception):
                failure = failure or done
                self.wind_down()
                continue
            self._seen += 1
            self._room.release()
            if done is not None:
                yield done
        self.close()
        if failure is not None:
            raise failure

    def _make_room(self) -> None:
        """Pull further ahead once there are more slots: machines that joined meanwhile."""
        more = len(self._dispatcher.slots) - self._roomy_for
        if more > 0:
            self._roomy_for += more
            self._room.release(PULLED_AHEAD * more)

    def wind_down(self) -> None:
        """Begin no more commands; those that run come to their end, and the reader is told."""
        with self._door:
            self._winding_down = True
            if self._expected is None:
                self._expected = self._pulled

    def close(self) -> None:
        """End what still runs and let go of the leases; harmless twice."""
        self._closed = True
        self._room.release()
        self._dispatcher.close(kill=True)
        atexit.unregister(self.close)

    def _feed(self, commands: Iterable[str | Command]) -> None:
        try:
            for place, command in zip(itertools.count(), commands, strict=False):
                self._room.acquire()
                with self._door:
                    if self._closed or self._winding_down:
                        return
                    self._pulled += 1
                whole = _plain(place, command) if isinstance(command, str) else command
                self._dispatcher.add([self._job(whole, place)])
        except ExecutorClosed:
            return
        except Exception as error:  # noqa: BLE001 - whatever the source raises is the reader's
            self._ended.put(_SourceEnded(error))
        else:
            self._ended.put(_SourceEnded())

    def _job(self, command: Command, turn: int) -> Job:
        texts: list[str] = []

        def text(slot: int, device: GPUDevice) -> str:
            if texts:  # another try: its start is told of as the first one's was
                self._tell_begun(command)
            # A slot that was opened later, for a command that needs more memory, is new here.
            lane = self._lanes.setdefault(slot, Lane(len(self._lanes) + 1, device))
            texts[:] = [command.text(lane)]
            return texts[0]

        def end(outcome: Outcome, job: Job) -> None:
            device_id = job.attempts[-1].device_id if job.attempts else None
            self._ended.put(
                CommandDone(
                    command.index,
                    texts[0] if texts else "",
                    device_id,
                    outcome,
                    job.attempts,
                    command.digest,
                    command.label,
                    turn,
                )
            )

        return Job(
            item=command.index,
            begin=lambda: self._begin(command),
            end=end,
            command=text,
            deadline_seconds=self._timeout_seconds,
        )

    def _begin(self, command: Command) -> bool:
        """Say that a command begins, unless nothing begins any more."""
        if self._winding_down:
            self._ended.put(None)
            return False
        if not self._tell_begun(command):
            self._ended.put(None)
            return False
        return True

    def _tell_begun(self, command: Command) -> bool:
        """Say that a process of a command is about to start; False where that failed."""
        try:
            if self._on_begin is not None:
                self._on_begin(command)
        except Exception as error:  # noqa: BLE001 - whoever is told may fail: that is the reader's
            self._ended.put(error)
            return False
        return True


class _SourceEnded(msgspec.Struct, frozen=True):
    """There are no more commands than those that were pulled."""

    error: Exception | None = None


_Event = CommandDone | Exception | _SourceEnded | None
"""What a run tells its reader; None: a command that was pulled never begins."""


def _plain(index: int, text: str) -> Command:
    return Command(index, lambda _: text)
