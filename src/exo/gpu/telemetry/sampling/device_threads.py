"""A thread of its own for each device: there its driver is called, one call after another."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

logger = logging.getLogger("exo.gpu.telemetry.sampler")

Reader: TypeAlias = "Callable[[bool], GPUMetrics]"
"""Reads one device; may block. The argument says whether its dear readings are due too."""


class Answer(NamedTuple):
    """How a call ended: with a sample, or with the reason why there is none."""

    device_id: str
    number: int
    """Of the call that is answered; a call that nobody waits for any more has another."""
    sample: GPUMetrics | None
    failure: str
    taken_at: float


class _Call(NamedTuple):
    number: int
    reader: Reader
    dear: bool


class Gate:
    """Lets quick calls through one after another, and holds up none for long behind a slow one.

    Threads that call drivers at the same moment hand the interpreter to one another at every
    driver call, which costs more than the calls: in turn, sixteen of them need a third less.
    """

    def __init__(self, patience_seconds: float = 0.005) -> None:
        """Open. Nobody waits for longer than ``patience_seconds``."""
        self._patience_seconds = patience_seconds
        self._turn = threading.Lock()

    def renew(self) -> None:
        """Whoever is inside hangs: let the others through without it."""
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def passed(self) -> Generator[None]:
        """Inside, nearly always alone."""
        turn = self._turn
        alone = turn.acquire(timeout=self._patience_seconds)
        try:
            yield
        finally:
            if alone:
                turn.release()


class DeviceThread:
    """Makes the calls of one device on one daemon thread, which cannot keep a program from exiting.

    A driver call cannot be interrupted: while one hangs, the thread hangs, and no second one is
    started in its place.
    """

    def __init__(
        self,
        device_id: str,
        deliver: Callable[[Answer], None],
        *,
        clock: Callable[[], float],
        gate: Gate,
    ) -> None:
        """Wait for the first call. ``deliver`` is called from the thread with every answer."""
        self._device_id = device_id
        self._deliver = deliver
        self._clock = clock
        self._gate = gate
        self._pending = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, name=f"exo-gpu-read-{device_id}", daemon=True
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a call is under way or waits: its answer was not settled."""
        return self._pending > 0

    def ask(self, number: int, reader: Reader, *, dear: bool) -> None:
        """Make this call, after the one that may be under way; what else waited is withdrawn."""
        self._withdraw()
        self._pending += 1
        self._calls.put(_Call(number, reader, dear))

    def settle(self) -> None:
        """One answer has arrived; for the one thread that asks."""
        self._pending -= 1

    def end(self) -> None:
        """End the thread, as soon as a call that may be under way returns."""
        self._withdraw()
        self._calls.put(None)

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end, so long at most."""
        self._thread.join(timeout_seconds)

    def _withdraw(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
                self._pending -= 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._deliver(self._answer(call))
            del call  # an idle thread keeps no reader alive

    def _answer(self, call: _Call) -> Answer:
        sample, failure = None, ""
        try:
            with self._gate.passed():
                sample = call.reader(call.dear)
            if not isinstance(sample, GPUMetrics):
                sample, failure = None, f"its reader gave a {type(sample).__name__}, no sample"
        except Exception as error:
            # The vendor-read border: whatever a driver does costs this device's sample only.
            logger.debug("reading %s failed", self._device_id, exc_info=True)
            failure = str(error) or type(error).__name__
        return Answer(self._device_id, call.number, sample, failure, self._clock())
