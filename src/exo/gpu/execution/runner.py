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
from typing import TYPE_CHECKING

from exo.gpu.execution.frames import Frame, receive_frame, send_frame
from exo.gpu.execution.outcome import describe_exit
from exo.gpu.execution.worker import FUNCTIONS_KEPT
from exo.gpu.vocabulary.errors import WorkerDied
from exo.gpu.vocabulary.job import Ending, Outcome, SlotSetup, Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A worker that got end-of-file exits at once unless an item is running; then it is killed.
GRACE_SECONDS = 2.0


class Runner:
    """A worker process. All calls come from one thread, except :meth:`kill`."""

    def __init__(
        self,
        environ: Mapping[str, str],
        keep_open: tuple[int, ...],
        python: str = sys.executable,
    ) -> None:
        """Start the process in ``environ``; it inherits the descriptors of ``keep_open``.

        ``python`` is its interpreter, which must be of the same minor version as this one.

        Raises:
            OSError: when the process cannot be started.

        """
        self._stream, theirs = socket.socketpair()
        script = str(Path(__file__).with_name("worker.py"))
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [python, script, str(theirs.fileno())],
                    env=dict(environ),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), *keep_open),
                    # A group of its own: a terminal's Ctrl-C passes it by, and it dies as one.
                    process_group=0,
                )
            except OSError:
                self._stream.close()
                raise
        self._known: OrderedDict[int, None] = OrderedDict()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def set_up(self, setup: SlotSetup) -> str | None:
        """Hand over the import path and run the initializer; None, or why it was refused.

        Raises:
            WorkerDied: when the process ended instead of answering.

        """
        version = sys.version_info[:2]
        payload = pickle.dumps((version, list(setup.import_path), setup.initializer))
        self._send(Frame.SETUP, payload)
        kind, answer = self._receive()
        return None if kind is Frame.READY else str(pickle.loads(answer))

    def work(self, work: Work) -> Iterator[tuple[Outcome, ...]]:
        """Send the items and yield their outcomes as they come, in order.

        Raises:
            WorkerDied: when the process ended before all were reported.

        """
        if work.function is not None and work.function not in self._known:
            self._send(Frame.FUNCTION, pickle.dumps((work.function, work.function_payload)))
            self._known[work.function] = None
            while len(self._known) > FUNCTIONS_KEPT:
                self._known.popitem(last=False)
        elif work.function is not None:
            self._known.move_to_end(work.function)
        items = pickle.dumps(work.payloads)
        self._send(Frame.WORK, pickle.dumps((work.function, items)))
        while True:
            kind, payload = self._receive()
            if kind is Frame.IDLE:
                return
            yield tuple(
                Outcome(
                    item=work.items[place],
                    ending=Ending.SUCCEEDED if succeeded else Ending.FAILED,
                    started_at=started,
                    ended_at=ended,
                    payload=pickled,
                )
                for place, succeeded, started, ended, pickled in _reports(payload)
            )

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
        self.kill()  # what it started may live on, without a lease

    def _send(self, kind: Frame, payload: bytes) -> None:
        try:
            send_frame(self._stream, kind, payload)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[Frame, bytearray]:
        frame = receive_frame(self._stream)
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
            return WorkerDied(f"worker {self.pid} closed its connection")
        self.kill()  # what it started may live on
        return WorkerDied(f"worker {self.pid} {describe_exit(self._process.returncode)}")


def _reports(payload: bytearray) -> list[tuple[int, bool, float, float, bytes]]:
    return pickle.loads(payload)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and all of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
