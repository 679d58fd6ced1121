"""The worker of a slot: started and set up, watched, and replaced with patience."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.memory_kills import MemoryKills
from exo.gpu.execution.runner import Runner
from exo.gpu.execution.slot_process import RunnerProcess
from exo.gpu.execution.watchdog import WATCHDOG
from exo.gpu.execution.watched_task import Limits, WatchedTask
from exo.gpu.vocabulary.errors import WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.execution.prints import Prints
    from exo.gpu.vocabulary.job import SlotSetup

# A process that cannot even be set up so many times in a row will not be the next time.
STARTS_IN_A_ROW = 3

# Between two deaths, or two starts that fail, of one slot; doubled each time, up to the second.
BACKOFF_SECONDS = 0.05
LONGEST_BACKOFF_SECONDS = 5.0


class RunnerHolder:
    """Holds at most one runner. All calls come from one thread, except :meth:`check`.

    ``settle`` is called before a process starts where another one was.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        keep_open: tuple[int, ...],
        python: str,
        *,
        limits: Limits,
        prints: Prints | None,
        settle: Callable[[Callable[[], bool]], None] | None,
    ) -> None:
        self.runner: Runner | None = None
        self.task: WatchedTask | None = None
        """What the watchdog looks at now."""
        self.lock = threading.Lock()
        """Around the runner and the task, which other threads see too."""
        self.stop_asked = threading.Event()
        self.taken = 0
        """Items that the present process was given."""
        self.deaths = 0
        """In a row."""
        self.used = False
        """Whether a process was here whose memory may not be back yet."""
        self.kills = MemoryKills()
        self.limits = limits
        self.prints = prints
        self._environ = environ
        self._keep_open = keep_open
        self._python = python
        self._settle = settle
        self._refused = False

    def check(self, now: float) -> float:
        """Look after what runs; for the watchdog."""
        with self.lock:
            return math.inf if self.task is None else self.task.check(now)

    def watch(self, task: WatchedTask | None) -> None:
        """Have the watchdog look after this now; None: after nothing."""
        with self.lock:
            self.task = task
        if task is not None:
            WATCHDOG.hurry(task.first_due)

    def settle_memory(self) -> None:
        """Wait until the memory of the last process is back."""
        if self._settle is not None and self.used:
            self._settle(lambda: not self.stop_asked.is_set())
        self.used = False

    def end(self) -> None:
        """Let the runner go; harmless where there is none."""
        runner = self.runner
        with self.lock:
            self.runner = None
        if runner is not None:
            runner.close()

    def forget(self) -> None:
        """The runner is gone by itself."""
        with self.lock:
            self.runner = None
        self.deaths += 1

    def start(self, setup: SlotSetup, *, first: bool) -> str | None:
        """Start a runner that is set up; None once it is ready, or why there will be none.

        The ``first`` one that refuses its set-up refuses for good; a later one perhaps only now.
        Nothing is started any more, and "" returned, where a stop was asked for meanwhile.
        """
        problem: str | None = ""
        if self.deaths > 1:
            self._back_off(self.deaths - 2)
        for number in range(STARTS_IN_A_ROW):
            if number:
                self._back_off(number - 1)
            if self.stop_asked.is_set():
                return ""
            problem = self._start_once(setup)
            if problem is None or (self._refused and first):
                break
        if problem is not None:
            with self.lock:
                self.runner = None
        return problem

    def _back_off(self, times: int) -> None:
        self.stop_asked.wait(min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**times))

    def _start_once(self, setup: SlotSetup) -> str | None:
        """None once a runner is ready, or why there is none."""
        self._refused = False
        self.kills.mark()
        try:
            runner = Runner(self._environ, self._keep_open, self._python, prints=self.prints)
        except OSError as error:
            return f"no worker starts: {error}"
        with self.lock:
            self.runner = runner
        # It comes up while the memory of the one before comes back, and touches no device yet.
        self.settle_memory()
        self.used, self.taken = True, 0
        process = RunnerProcess(runner, None)
        limits = msgspec.structs.replace(self.limits, acknowledgement_seconds=math.inf)
        task = WatchedTask(
            process, (-1,), time.monotonic(), limits, deadline_seconds=setup.start_seconds
        )
        self.watch(task)
        try:
            refused = runner.set_up(setup)
        except WorkerDied as error:
            return f"no worker starts: {task.why or error}"
        finally:
            self.watch(None)
        if refused is None:
            return None
        self._refused = True
        self.end()
        return refused
