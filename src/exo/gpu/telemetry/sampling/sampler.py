"""When devices are sampled: over and over, each at its own cadence, whatever single drivers do."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Self

from exo.gpu.telemetry.sampling.device_threads import Answer, DeviceThread, Gate
from exo.gpu.telemetry.sampling.observation import Observation, Teller
from exo.gpu.telemetry.sampling.readers import PowerFromEnergy
from exo.gpu.telemetry.sampling.schedule import Schedule, check_cadence
from exo.gpu.vocabulary.errors import ManagerClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.telemetry.sampling.device_threads import Reader

logger = logging.getLogger("exo.gpu.telemetry.sampler")

# The operating system has a longest wait; looking at the schedule in between costs nothing.
_LONGEST_WAIT_SECONDS = 3600.0


class _Watched:
    """A device, how it is read, and the thread on which that happens."""

    __slots__ = ("cadence_seconds", "number", "reader", "thread")

    def __init__(self, reader: Reader, thread: DeviceThread, cadence_seconds: float) -> None:
        self.reader = reader
        self.thread = thread
        self.cadence_seconds = cadence_seconds
        self.number = 0


class TelemetrySampler:
    """Asks devices again and again, each at its own cadence, whatever single drivers do.

    One daemon thread keeps the schedule and calls ``sink`` with every
    :class:`Observation`, one after another; each device is read on a daemon thread of its own. A
    call that outlasts ``deadline_seconds`` is given up: the device is reported as hanging, its
    late answer is dropped, and it is asked again only when the call has returned, so that it
    never costs a second thread. A sink that raises is logged, and sampling goes on.

    All methods return at once, except :meth:`stop`, and are safe for threads. An observation that
    is under way may still arrive after :meth:`forget` or :meth:`pause`.
    """

    def __init__(
        self,
        sink: Callable[[Observation], None],
        *,
        cadence_seconds: float = 1.0,
        slow_cadence_seconds: float = 10.0,
        deadline_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is watched and nothing runs before :meth:`start`.

        Raises:
            InvalidValue: for a time that is not a number of seconds, or a cadence too short.

        """
        self._teller = Teller(sink)
        self._cadence_seconds = cadence_seconds
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._schedule = Schedule(
            jitter=jitter,
            cadence_seconds=cadence_seconds,
            slow_cadence_seconds=slow_cadence_seconds,
            deadline_seconds=deadline_seconds,
        )
        self._power = PowerFromEnergy()
        self._gate = Gate()
        # Everything that changes state goes through here, and is done on the one thread below.
        self._inbox: queue.SimpleQueue[Answer | Callable[[], None]] = queue.SimpleQueue()
        self._watched: dict[str, _Watched] = {}
        # Threads of devices that were forgotten while their call hung; each ends when it returns.
        self._left_behind: dict[str, DeviceThread] = {}
        self._calls = 0
        self._hanging: tuple[str, ...] = ()
        self._now = 0.0
        self._ended = False
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="exo-gpu-sampler", daemon=True)

    @property
    def hanging(self) -> tuple[str, ...]:
        """Ids of the devices whose call has outlasted its deadline and has not returned."""
        return self._hanging

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def watch(
        self, device_id: str, reader: Reader, *, cadence_seconds: float | None = None
    ) -> None:
        """Ask a device from now on, or in another way than before.

        ``reader`` is called on the device's thread with whether dear readings are due too; what
        else is dear, such as who works on the device, can be read there as well.

        Raises:
            InvalidValue: for a cadence that is too short.
            ManagerClosed: after :meth:`stop`.

        """
        cadence = self._cadence_seconds if cadence_seconds is None else cadence_seconds
        check_cadence("cadence_seconds", cadence)
        self._command(lambda: self._watch(device_id, reader, cadence))

    def forget(self, device_id: str) -> None:
        """Ask it no more; harmless for a device that is not watched, and after :meth:`stop`."""
        if not self._stopped:
            self._inbox.put(lambda: self._forget(device_id))

    def pause(self) -> None:
        """Ask nobody until :meth:`resume`; answers under way still arrive."""
        self._command(self._schedule.pause)

    def resume(self) -> None:
        """Ask every device that came due meanwhile once, and go on at its ticks as before."""
        self._command(lambda: self._schedule.resume(self._now))

    def start(self) -> None:
        """Begin; harmless twice.

        Raises:
            ManagerClosed: after :meth:`stop`, which is for good.

        """
        with self._lock:
            self._refuse_if_stopped()
            if self._thread.ident is None:
                self._thread.start()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End all that can be ended, within the time; harmless twice.

        Calls that hang are left behind on their threads, which do not keep a program from exiting.
        Unless the sink itself hangs, nothing is told to it any more.
        """
        ends = time.monotonic() + timeout_seconds
        with self._lock:
            self._stopped = True
            self._teller.silence()
            begun = self._thread.ident is not None
        self._inbox.put(self._end)
        if not begun or self._thread is threading.current_thread():
            return
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning("the sampler's sink did not return within %g s", timeout_seconds)
            return
        hanging = self._hanging
        for device_id, watched in self._watched.items():
            if device_id not in hanging:
                watched.thread.join(max(0.0, ends - time.monotonic()))

    def _command(self, command: Callable[[], None]) -> None:
        self._refuse_if_stopped()
        self._inbox.put(command)

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise ManagerClosed("the sampler was stopped")

    # From here on, everything happens on the sampler's own thread.

    def _run(self) -> None:
        while not self._ended:
            self._wait()
            if not self._ended:
                self._turn()
        for watched in self._watched.values():
            watched.thread.end()
        for thread in self._left_behind.values():
            thread.end()

    def _wait(self) -> None:
        """Until something is due or comes in; then all that came in is done."""
        at = self._schedule.next_at()
        timeout = None if at is None else min(max(0.0, at - self._clock()), _LONGEST_WAIT_SECONDS)
        try:
            first = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return
        self._now = self._clock()
        self._do(first)
        for _ in range(self._inbox.qsize()):
            self._do(self._inbox.get_nowait())

    def _do(self, message: Answer | Callable[[], None]) -> None:
        if self._ended:
            return
        if isinstance(message, Answer):
            self._take(message)
        else:
            message()

    def _turn(self) -> None:
        self._now = self._clock()
        due = self._schedule.turn(self._now)
        for tick in due.ask:
            watched = self._watched[tick.device_id]
            self._calls += 1
            watched.number = self._calls
            watched.thread.ask(self._calls, watched.reader, dear=tick.dear)
        for device_id in due.overdue:
            self._gate.renew()
            failure = f"no answer within {self._deadline_seconds:g} s"
            self._hanging = (*self._hanging, device_id)
            self._teller.tell(Observation(device_id, None, failure, True, self._now))

    def _take(self, answer: Answer) -> None:
        """An answer; one that nobody waits for, or that comes too late, is dropped."""
        device_id = answer.device_id
        watched = self._watched.get(device_id)
        thread = self._left_behind.get(device_id) if watched is None else watched.thread
        if thread is None:
            return
        thread.settle()
        if watched is None:
            self._let_go(device_id, thread)
            return
        if answer.number != watched.number:
            return
        sample = answer.sample
        late = self._schedule.is_overdue(device_id)
        asleep = sample is not None and sample.sleeping
        self._schedule.answered(device_id, self._now, failed=sample is None, sleeping=asleep)
        if late:
            self._hanging = tuple(name for name in self._hanging if name != device_id)
            logger.info("%s has answered at last, too late", device_id)
            return
        if sample is not None:
            sample = self._power.complete(
                sample, device_id, at=answer.taken_at, cadence_seconds=watched.cadence_seconds
            )
        self._teller.tell(Observation(device_id, sample, answer.failure, False, answer.taken_at))

    def _watch(self, device_id: str, reader: Reader, cadence_seconds: float) -> None:
        self._forget(device_id)
        thread = self._left_behind.pop(device_id, None)
        if thread is None:
            thread = DeviceThread(device_id, self._inbox.put, clock=self._clock, gate=self._gate)
        self._watched[device_id] = _Watched(reader, thread, cadence_seconds)
        self._schedule.add(device_id, self._now, cadence_seconds=cadence_seconds)

    def _forget(self, device_id: str) -> None:
        watched = self._watched.pop(device_id, None)
        if watched is None:
            return
        self._schedule.remove(device_id)
        self._power.forget(device_id)
        self._teller.forget(device_id)
        self._hanging = tuple(name for name in self._hanging if name != device_id)
        self._let_go(device_id, watched.thread)

    def _let_go(self, device_id: str, thread: DeviceThread) -> None:
        """End an idle thread; keep one whose call has not returned for when it does."""
        if thread.busy:
            self._left_behind[device_id] = thread
            return
        self._left_behind.pop(device_id, None)
        thread.end()

    def _end(self) -> None:
        self._ended = True
