"""What a slot is at, as the watchdog sees it: its deadlines, and the steps of ending it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from exo.gpu.vocabulary.job import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

# A worker that is at an item for longer is asked so often whether it is there.
PULSE_SECONDS = 5.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long things may take, in seconds."""

    grace_seconds: float = 3.0
    """From one step of ending an item to the next: asked, SIGTERM, SIGKILL."""
    heartbeat_seconds: float = 120.0
    """A worker that has not answered for so long, and has not computed, does not live any more."""
    acknowledgement_seconds: float = 600.0
    """Until work is taken up; the first import of a large framework comes before that."""


class Process(Protocol):
    """The process that does the task."""

    def cancel(self, place: int) -> bool:
        """Ask it to stop an item; False where it cannot be asked."""
        ...

    def terminate(self) -> None:
        """SIGTERM to its group."""
        ...

    def kill(self) -> None:
        """SIGKILL to its group."""
        ...

    def answers(self) -> tuple[bool, bool]:
        """Whether it answered since the last question, and with this task; asks again."""
        ...

    def cpu_seconds(self) -> float | None:
        """What it has computed so far; None: not known."""
        ...


class WatchedTask:
    """One piece of work in a process. Its owner holds a lock around every call."""

    def __init__(
        self,
        process: Process,
        items: Sequence[int],
        now: float,
        limits: Limits,
        *,
        deadline_seconds: float | None = None,
        asked: Callable[[], bool] = lambda: True,
    ) -> None:
        """``asked`` says whether the process can be asked at all; a shell command cannot."""
        self.doomed: dict[int, Cause] = {}
        """What is to be ended, and why, by item."""
        self.why = ""
        self._process = process
        self._items = items if isinstance(items, range) else dict.fromkeys(items)
        self._place_of = items.index
        self._limits = limits
        self._began = self._heard = now
        self._deadline = math.inf if deadline_seconds is None else now + deadline_seconds
        self._deadline_seconds = deadline_seconds
        self._asked = asked
        self._step = 0
        self._step_due = math.inf
        self._acknowledged = False
        self._pulse_seconds = min(PULSE_SECONDS, limits.heartbeat_seconds / 4)
        self._pulse_due = now + self._pulse_seconds
        self._measured_at: float | None = None
        self._cpu_seconds: float | None = None

    @property
    def first_due(self) -> float:
        """When to look at it first."""
        return min(self._deadline, self._pulse_due)

    def heard(self) -> None:
        """It reported something."""
        self._acknowledged = True

    def ended(self, item: int) -> Cause | None:
        """An item ended; why that was, if it was to be ended."""
        cause = self.doomed.pop(item, None)
        if cause is not None and not self.doomed:
            self._step, self._step_due = 0, math.inf
        return cause

    def condemn(self, item: int, cause: Cause, now: float, why: str = "") -> None:
        """End an item, step by step; one that is doomed already stays so."""
        if item not in self._items or item in self.doomed:
            return
        if not self.doomed:
            self._step, self._step_due = 0, now
        self.doomed[item] = cause
        self.why = why or self.why
        if self._step > 0 and cause is not Cause.UNRESPONSIVE:
            self._process.cancel(self._place_of(item))

    def check(self, now: float) -> float:
        """Do what is due, and say when to look again."""
        if now >= self._deadline:
            self._deadline = math.inf
            for item in self._items:
                self.condemn(
                    item, Cause.TIMEOUT, now, f"took longer than {self._deadline_seconds:g} s"
                )
        if self._asked():
            self._pulse(now)
        elif now >= self._pulse_due:
            self._pulse_due = now + self._pulse_seconds
        if now >= self._step_due:
            self._end(now)
        return min(self._deadline, self._step_due, self._pulse_due)

    def _end(self, now: float) -> None:
        hopeless = Cause.UNRESPONSIVE in self.doomed.values()
        self._step_due = now + self._limits.grace_seconds
        if self._step == 0 and not hopeless and self._asked():
            for item in tuple(self.doomed):
                self._process.cancel(self._place_of(item))
        elif self._step <= 1 and not hopeless:
            self._step = 1
            self._process.terminate()
        else:
            self._process.kill()
        self._step += 1

    def _pulse(self, now: float) -> None:
        if now < self._pulse_due or Cause.UNRESPONSIVE in self.doomed.values():
            return
        self._pulse_due = now + self._pulse_seconds
        answered, with_this = self._process.answers()
        self._acknowledged = self._acknowledged or with_this
        silent_seconds = now - self._heard
        if answered:
            self._heard, self._measured_at = now, None
        elif silent_seconds > self._limits.heartbeat_seconds / 2 and self._measured_at is None:
            self._measured_at, self._cpu_seconds = now, self._process.cpu_seconds()
        elif silent_seconds > self._limits.heartbeat_seconds:
            self._judge_silence(now, silent_seconds)
        if not self._acknowledged and now - self._began > self._limits.acknowledgement_seconds:
            seconds = self._limits.acknowledgement_seconds
            self._give_up(now, f"did not take up its work within {seconds:g} s")

    def _judge_silence(self, now: float, seconds: float) -> None:
        """One that computes is busy in code that does not let Python run, which is no death."""
        measured_at = now if self._measured_at is None else self._measured_at
        if now < measured_at + self._limits.heartbeat_seconds / 2:
            return
        computed, before = self._process.cpu_seconds(), self._cpu_seconds
        if computed is not None and before is not None and computed > before:
            self._heard, self._measured_at = now, None
        else:
            self._give_up(now, f"has not answered for {seconds:.0f} s, nor computed")

    def _give_up(self, now: float, why: str) -> None:
        for item in self._items:
            self.condemn(item, Cause.UNRESPONSIVE, now, why)
        self._step_due = now
