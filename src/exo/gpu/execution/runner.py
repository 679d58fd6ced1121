"""One worker process, pinned to one device: started, fed, listened to, ended."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from exo.gpu.execution.frames import Frame, receive_frame, receive_with_blobs, send_frame
from exo.gpu.execution.item_loop import RAN, RECALLED
from exo.gpu.execution.outcome import describe_exit
from exo.gpu.execution.packing import flatten, raise_up
from exo.gpu.execution.successes import Successes
from exo.gpu.execution.worker import FUNCTIONS_KEPT
from exo.gpu.vocabulary.errors import WorkerDied
from exo.gpu.vocabulary.job import Ending, Outcome, SlotSetup, Work
from exo.gpu.vocabulary.parcel import Batch, Parcel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exo.gpu.execution.prints import Prints


class Recalled(NamedTuple):
    """The items of a work, its last ones, that will not be begun."""

    items: tuple[int, ...]


Report: TypeAlias = "Sequence[Outcome] | Recalled | bytes | None"
"""Outcomes; what was taken back; the chunk of a stream; None: it took up a stream."""

# A worker that got end-of-file exits at once unless an item is running; then it is killed.
GRACE_SECONDS = 2.0


class Runner:
    """A worker process. All calls come from one thread, except those that say otherwise."""

    def __init__(
        self,
        environ: Mapping[str, str],
        keep_open: tuple[int, ...],
        python: str = sys.executable,
        *,
        prints: Prints | None = None,
    ) -> None:
        """Start the process in ``environ``; it inherits the descriptors of ``keep_open``.

        ``python`` is its interpreter, which must be of the same minor version as this one. What
        it prints goes to ``prints``; without that, where this process prints.

        Raises:
            OSError: when the process cannot be started.

        """
        self._stream, theirs = socket.socketpair()
        self._side, their_side = socket.socketpair()
        script = str(Path(__file__).with_name("worker.py"))
        numbers = [theirs.fileno(), their_side.fileno()]
        self._prints = prints
        stdout, stderr = prints.open() if prints else (None, None)
        with theirs, their_side:
            try:
                self._process = subprocess.Popen(
                    [python, script, *map(str, numbers), str(os.getpid())],
                    env=dict(environ),
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(*numbers, *keep_open),
                    # A group of its own: a terminal's Ctrl-C passes it by, and it dies as one.
                    process_group=0,
                )
            except OSError:
                self._stream.close()
                self._side.close()
                raise
            finally:
                if prints:
                    prints.started()
        self._side.setblocking(False)
        self._closed = False
        self._known: OrderedDict[int, None] = OrderedDict()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """As in ``subprocess``; None while it runs, and where it closed its socket and lived on."""
        return None if self._closed else self._process.returncode

    def set_up(self, setup: SlotSetup) -> str | None:
        """Hand over the import path and run the initializer; None, or why it was refused.

        Raises:
            WorkerDied: when the process ended instead of answering.

        """
        version = sys.version_info[:2]
        path = list(setup.import_path)
        aside = self._prints is not None
        told = (version, path, setup.directory, setup.initializer, aside)
        self._send(Frame.SETUP, pickle.dumps(told))
        kind, answer, _ = self._receive()
        return None if kind is Frame.READY else str(pickle.loads(answer))

    def work(self, work: Work) -> Iterator[Report]:
        """Send the items and yield what comes: outcomes in order, of a stream its chunks before.

        Raises:
            WorkerDied: when the process ended before all were reported.

        """
        self._send_function(work)
        batch = work.batch or Batch(len(work.payloads), parcels=tuple(map(_parcel, work.payloads)))
        flat, beside = flatten(batch)
        stream_credits = max(1, work.credits) if work.stream else 0
        words = (work.work_id, work.function, work.is_single, flat, stream_credits)
        self._send(Frame.WORK, pickle.dumps(words), beside)
        place, ends = 0, len(work.items)
        while True:
            kind, payload, blobs = self._receive()
            if kind is Frame.CHUNK:
                yield bytes(payload)
                continue
            if kind is Frame.ACKNOWLEDGED:
                yield None
                continue
            beside = iter(blobs)
            for ending in pickle.loads(payload) if payload else ():
                if ending[0] == RECALLED:
                    yield Recalled(tuple(work.items[ends - ending[1] : ends]))
                    ends -= ending[1]
                    continue
                outcomes = _outcomes(work.items[place:], ending, beside)
                place += len(outcomes)
                yield outcomes
            if kind is Frame.IDLE:
                return

    def _send_function(self, work: Work) -> None:
        if work.function is None:
            return
        if work.function in self._known:
            self._known.move_to_end(work.function)
            return
        flat, beside = flatten(Batch(1, parcels=(_parcel(work.function_payload),)))
        self._send(Frame.FUNCTION, pickle.dumps((work.function, flat)), beside)
        self._known[work.function] = None
        while len(self._known) > FUNCTIONS_KEPT:
            self._known.popitem(last=False)

    def recall(self, work_id: int) -> bool:
        """Ask it, from any thread, to give back what it has not begun of a work."""
        return self._aside(Frame.RECALL, pickle.dumps(work_id))

    def ping(self) -> bool:
        """Ask whether it is there, from any thread; False when it does not even take questions."""
        return self._aside(Frame.PING, b"")

    def pongs(self) -> list[int | None]:
        """What came back to :meth:`ping` so far, from any one thread: the work it was at each."""
        numbers: list[int | None] = []
        with contextlib.suppress(OSError):
            while self._side.recv(1, socket.MSG_PEEK):
                frame = receive_frame(self._side)
                if frame is not None:
                    numbers.append(pickle.loads(frame[1]))
        return numbers

    def cancel(self, work_id: int, place: int) -> bool:
        """Ask it to stop one item, from any thread; False when it does not take it."""
        return self._aside(Frame.CANCEL, pickle.dumps((work_id, place)))

    def allow(self, work_id: int, count: int) -> bool:
        """Let a stream be so many chunks more ahead, from any thread."""
        return self._aside(Frame.CREDIT, pickle.dumps((work_id, count)))

    def terminate(self) -> None:
        """Send SIGTERM to the process and all it started; harmless twice and from any thread."""
        kill_group(self._process, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all it started, at once; harmless twice and from any thread."""
        kill_group(self._process)

    def close(self) -> None:
        """Let the process end by itself, and kill it when it does not."""
        self._stream.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._bury()

    def _bury(self) -> None:
        self._side.close()
        self.kill()  # what it started may live on, without a lease
        if self._prints:
            self._prints.ended()

    def _aside(self, kind: Frame, payload: bytes) -> bool:
        """Small frames on a socket of their own: one that is full is as good as a deaf process."""
        try:
            send_frame(self._side, kind, payload)
        except OSError:
            return False
        return True

    def _send(self, kind: Frame, payload: bytes, blobs: Sequence[Any] = ()) -> None:
        try:
            send_frame(self._stream, kind, payload, blobs)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[Frame, bytearray, list[memoryview]]:
        frame = receive_with_blobs(self._stream)
        if frame is None:
            raise self._death()
        return frame

    def _death(self) -> WorkerDied:
        self._stream.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # It closed the socket and lives on: of no more use.
            self.kill()
            self._process.wait()
            self._closed = True
            self._bury()
            return WorkerDied(f"worker {self.pid} closed its connection")
        self._bury()
        return WorkerDied(f"worker {self.pid} {describe_exit(self._process.returncode)}")


def _parcel(payload: bytes | Parcel) -> Parcel:
    return payload if isinstance(payload, Parcel) else Parcel((payload,), by_value=True)


def _outcomes(
    items: Sequence[int], ending: tuple[Any, ...], beside: Iterator[memoryview]
) -> Sequence[Outcome]:
    """What one report of the worker's item loop says of the first of these items."""
    if ending[0] == RAN:
        _, origin, moments, flat = ending
        batch = raise_up(flat, beside)
        return Successes(items[: batch.size], batch, origin, moments)
    _, started, ended, payload = ending
    failed = Outcome(
        item=items[0],
        ending=Ending.FAILED,
        started_at=started,
        ended_at=ended,
        payload=payload,
    )
    return (failed,)


def kill_group(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """End a process that leads its own group, and all of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
