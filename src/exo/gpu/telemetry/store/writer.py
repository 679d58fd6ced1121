"""The writer of the history: takes samples at any rate, and writes them on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.telemetry.store.lock import WriterElsewhere, WriterLock, take_lock
from exo.gpu.telemetry.store.recorder import Recorder
from exo.gpu.telemetry.store.upkeep import HistoryLimits
from exo.gpu.vocabulary.errors import InvalidValue, StoreError
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.units import check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from exo.gpu.telemetry.store.file import OpenFile
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import DeviceFault, HealthEvent

logger = logging.getLogger("exo.gpu.telemetry.store")

# About 50 MB of samples that wait for a disk that is slow or full.
MOST_WAITING = 100_000
_MOST_EVENTS_WAITING = 10_000
_FLUSH_SECONDS = 1.0
# After a failure the disk is tried again each second at first, and at least this often.
_LONGEST_PAUSE_SECONDS = 30.0


class WriterStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the samples given to a writer, in samples, and what is wrong now."""

    written: int
    waiting: int
    dropped: int
    """The oldest of those that waited, when too many did."""
    refused: int
    """Of a time before 1970 or after 9999, or of one device too many."""
    problem: str | None
    """Why the last attempt to write failed, or None."""


class HistoryWriter:
    """Writes samples and events; there is one for each file, whatever process it is in.

    :meth:`add` and :meth:`add_event` may be called from any thread and never wait for a disk.
    What they took is on disk after a second, or when :meth:`close` returns; a process that is
    killed loses what came since the last flush, and nothing else.
    """

    def __init__(self, recorder: Recorder, lock: WriterLock, *, most_waiting: int) -> None:
        """Use :meth:`open`."""
        self._recorder = recorder
        self._lock = lock
        self._most_waiting = most_waiting
        self._turn = threading.Condition()
        self._samples: deque[GPUMetrics] = deque()
        self._events: deque[HealthEvent | DeviceFault] = deque(maxlen=_MOST_EVENTS_WAITING)
        self._writing = self._written = self._dropped = self._refused = 0
        self._problem: str | None = None
        self._pause_seconds = _FLUSH_SECONDS
        self._asked = self._tried = self._flushed = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="exo-gpu history", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        limits: HistoryLimits | None = None,
        clock: Callable[[], float] = time.time,
        most_waiting: int = MOST_WAITING,
    ) -> HistoryWriter | WriterElsewhere:
        """Become the writer of the history at ``path``, or say who is; made if it is not there.

        ``clock`` gives Unix seconds, by which what is too old is deleted. It reads the whole file
        once, so call it off an event loop.

        Raises:
            StoreTooNew: when a later release wrote the file.
            StoreError: naming the file, when it cannot be written.

        """
        check_whole("most_waiting", most_waiting, low=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path} cannot be used: {error}") from error
        lock = take_lock(path)
        if isinstance(lock, WriterElsewhere):
            return lock
        try:
            recorder = Recorder(path, limits or HistoryLimits(), clock=clock)
        except BaseException:
            lock.release()
            raise
        return cls(recorder, lock, most_waiting=most_waiting)

    def __enter__(self) -> HistoryWriter:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def opened(self) -> OpenFile:
        """What was found when the file was opened last: damage, an older version, a network."""
        return self._recorder.opened

    def register(self, device: GPUDevice) -> None:
        """Say what device a device id belongs to; its samples are kept under the hardware id.

        Samples of an id that was never registered are kept under the id itself.
        """
        self._recorder.identities.register(device)

    def add(self, samples: GPUMetrics | Iterable[GPUMetrics]) -> None:
        """Take a sample, or many; where too many wait, the oldest is dropped and counted.

        Raises:
            InvalidValue: for anything that is no GPUMetrics.

        """
        new = (samples,) if isinstance(samples, GPUMetrics) else tuple(samples)
        for sample in new:
            if not isinstance(sample, GPUMetrics):
                raise InvalidValue("samples", sample, "a GPUMetrics")
        with self._turn:
            if self._closing:
                self._dropped += len(new)
                return
            self._samples.extend(new)
            self._drop_oldest()
            if self._is_due():
                self._turn.notify_all()

    def add_event(self, event: HealthEvent | DeviceFault) -> None:
        """Take a change of health or a fault that a driver told."""
        with self._turn:
            self._events.append(event)

    @property
    def statistics(self) -> WriterStatistics:
        """What became of the samples so far."""
        with self._turn:
            return WriterStatistics(
                written=self._written,
                waiting=len(self._samples) + self._writing,
                dropped=self._dropped,
                refused=self._refused,
                problem=self._problem,
            )

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Try to write all that was added before; False where that failed or took too long."""
        check_number("timeout_seconds", timeout_seconds, low=0)
        with self._turn:
            self._asked += 1
            ticket = self._asked
            self._turn.notify_all()
            self._turn.wait_for(
                lambda: self._tried >= ticket or not self._thread.is_alive(), timeout_seconds
            )
            return self._flushed >= ticket

    def close(self, timeout_seconds: float = 10.0) -> bool:
        """Write what waits and let go of the file; harmless twice. False where that took too long.

        What the disk does not take is lost, and counted as dropped.
        """
        check_number("timeout_seconds", timeout_seconds, low=0)
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _is_due(self) -> bool:
        """Whether a flush cannot wait for the next second."""
        full = self._problem is None and len(self._samples) > self._most_waiting // 4
        return self._closing or self._asked > self._tried or full

    def _drop_oldest(self) -> None:
        excess = len(self._samples) - self._most_waiting
        for _ in range(excess):
            self._samples.popleft()
        self._dropped += max(0, excess)

    def _run(self) -> None:
        """Flush each second, and once more at the end; the body of the thread."""
        try:
            closing = False
            while not closing:
                with self._turn:
                    self._turn.wait_for(self._is_due, self._pause_seconds)
                    closing, ticket = self._closing, self._asked
                    samples, self._samples = self._samples, deque[GPUMetrics]()
                    events = tuple(self._events)
                    self._events.clear()
                    self._writing = len(samples)
                self._flush(samples, events, ticket)
        finally:
            self._recorder.close()
            self._lock.release()
            with self._turn:
                self._closing = True
                self._dropped += len(self._samples)
                self._samples.clear()
                self._turn.notify_all()

    def _flush(
        self,
        samples: deque[GPUMetrics],
        events: tuple[HealthEvent | DeviceFault, ...],
        ticket: int,
    ) -> None:
        problem: str | None = None
        refused = 0
        try:
            refused = self._recorder.write(samples, events)
        except StoreError as error:
            problem = str(error)
        with self._turn:
            self._writing = 0
            if problem is None:
                self._written += len(samples) - refused
                self._refused += refused
                self._flushed = ticket
            else:  # what was not written goes back to the front
                samples.extend(self._samples)
                self._samples = samples
                self._events.extendleft(reversed(events))
                self._drop_oldest()
            longer = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
            self._pause_seconds = longer if problem else _FLUSH_SECONDS
            before, self._problem = self._problem, problem
            self._tried = ticket
            self._turn.notify_all()
        if problem and not before:
            logger.warning("history is not written, and is tried again: %s", problem)
        elif before and not problem:
            logger.info("history is written again")
