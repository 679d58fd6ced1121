"""What keeps one slot of a device at work: a thread, and a runner that is replaced when it dies."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.execution.command import run_command
from exo.gpu.execution.judging import SPOILING, dead_outcome, judged_command, judged_report
from exo.gpu.execution.out_of_memory import Patterns
from exo.gpu.execution.outcome import Evidence, classify
from exo.gpu.execution.prints import Prints
from exo.gpu.execution.runner import Recalled
from exo.gpu.execution.runner_holder import RunnerHolder
from exo.gpu.execution.slot_process import CommandProcess, RunnerProcess
from exo.gpu.execution.successes import Successes, part_of
from exo.gpu.execution.watchdog import WATCHDOG
from exo.gpu.execution.watched_task import Limits, WatchedTask
from exo.gpu.vocabulary.errors import WorkerDied
from exo.gpu.vocabulary.job import (
    Cause,
    Outcome,
    SlotAcknowledged,
    SlotChunk,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotOutput,
    SlotReady,
    SlotRecalled,
    SlotSetup,
    SlotState,
    Work,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.execution.runner import Runner

logger = logging.getLogger(__name__)


class Loss(NamedTuple):
    """Of a worker that is gone."""

    reason: str
    cause: Cause


class RunnerSupervisor:
    """One slot: takes work in order, one piece at a time, and reports every ending exactly once.

    Events go to ``sink`` from the slot's own thread. A slot without ``setup`` runs shell
    commands only, each in a fresh process. ``on_state`` hears every change of :attr:`state`,
    ``on_output`` what workers print, which else comes out where this process prints. ``settle``
    is called before a process starts where another one was, and returns once that one's memory
    is back, or asks whether to go on waiting.
    """

    def __init__(
        self,
        slot_id: int,
        *,
        environ: Mapping[str, str],
        keep_open: tuple[int, ...],
        setup: SlotSetup | None,
        sink: Callable[[SlotEvent], None],
        python: str = sys.executable,
        limits: Limits | None = None,
        patterns: Patterns | None = None,
        settle: Callable[[Callable[[], bool]], None] | None = None,
        on_state: Callable[[SlotState], None] = lambda _: None,
        on_output: Callable[[SlotOutput], None] | None = None,
    ) -> None:
        self.slot_id = slot_id
        self.state = SlotState.STARTING
        self._environ = environ
        self._keep_open = keep_open
        self._setup = setup
        self._sink = sink
        self._patterns = patterns or Patterns()
        self._on_state = on_state
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._commands: list[subprocess.Popen[bytes]] = []
        self._work_id: int | None = None
        self._queued: dict[int, Work] = {}
        self._work_items: Sequence[int] = ()
        self._ends = 0
        self._withdrawn: set[tuple[int, int | None]] = set()
        self._loss = Loss("", Cause.CLOSED)
        self._holder = RunnerHolder(
            environ,
            keep_open,
            python,
            limits=limits or Limits(),
            prints=Prints(slot_id, on_output) if on_output else None,
            settle=settle,
        )
        WATCHDOG.add(self._holder)
        self._thread = threading.Thread(
            target=self._live, name=f"exo-gpu-slot-{slot_id}", daemon=True
        )
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue a piece of work; returns at once."""
        with self._holder.lock:
            self._queued[work.work_id] = work
        self._inbox.put(work)

    def cancel(self, work_id: int, item: int | None = None) -> None:
        """End an item of a piece of work, or all of it; returns at once.

        One that waits is not begun. One that runs is asked to stop, by KeyboardInterrupt in the
        function; after the grace the process gets SIGTERM, then SIGKILL. An item that has ended,
        or is unknown, is left alone.
        """
        with self._holder.lock:
            if work_id != self._work_id:
                self._withdrawn.add((work_id, item))
                return
            self._condemn(item)
        WATCHDOG.hurry(time.monotonic())

    def recall(self, work_id: int) -> None:
        """Take back what has not begun of a piece of work; returns at once.

        :class:`SlotRecalled` says what that was; it never comes where all had begun.
        """
        with self._holder.lock:
            queued = self._queued.pop(work_id, None)
            if queued is not None:
                self._sink(SlotRecalled(self.slot_id, work_id, tuple(queued.items)))
                self._sink(SlotIdle(self.slot_id, work_id))
            elif self._holder.runner is not None and work_id == self._work_id:
                self._holder.runner.recall(work_id)

    def allow(self, work_id: int, count: int) -> None:
        """Let a stream be so many chunks more ahead of its reader; returns at once."""
        with self._holder.lock:
            if self._holder.runner is not None and work_id == self._work_id:
                self._holder.runner.allow(work_id, count)

    def ask_to_stop(self, *, kill: bool) -> None:
        """Let the slot end after its current work, or with ``kill`` at once; returns at once."""
        if self._thread.is_alive():
            self._enter(SlotState.DRAINING)
        self._holder.stop_asked.set()
        self._inbox.put(None)
        if kill:
            self._kill()

    def stop(self, *, kill: bool, timeout_seconds: float) -> None:
        """End the slot and wait for it; after ``timeout_seconds`` it is killed. Harmless twice."""
        self.ask_to_stop(kill=kill)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._kill()
            self._thread.join(timeout_seconds)

    def _enter(self, state: SlotState) -> None:
        over = (SlotState.STOPPED, SlotState.FAILED)
        if self.state in over or (self.state is SlotState.DRAINING and state not in over):
            return
        if state is not self.state:
            self.state = state
            self._on_state(state)

    def _kill(self) -> None:
        with self._holder.lock:
            if self._holder.runner is not None:
                self._holder.runner.kill()
            CommandProcess(self._commands).kill()

    def _condemn(self, item: int | None) -> None:
        if self._holder.task is not None:
            for one in self._work_items if item is None else (item,):
                self._holder.task.condemn(one, Cause.CANCELLED, time.monotonic())

    def _live(self) -> None:
        try:
            self._serve()
        finally:
            WATCHDOG.remove(self._holder)
            if self._holder.runner is not None:
                self._holder.runner.close()
            self._enter(SlotState.STOPPED)

    def _serve(self) -> None:
        if self._setup is not None and not self._start(unfinished=()):
            return
        self._enter(SlotState.READY)
        if self._setup is None:
            self._sink(SlotReady(self.slot_id, 0))
        while (work := self._inbox.get()) is not None:
            with self._holder.lock:
                recalled = self._queued.pop(work.work_id, None) is None
            if recalled or self._holder.stop_asked.is_set():
                continue
            self._enter(SlotState.RUNNING)
            work = self._without_withdrawn(work)
            if work.command is not None:
                if work.items:
                    self._command(work)
                self._sink(SlotIdle(self.slot_id, work.work_id))
            elif not self._perform(work):
                return
            self._enter(SlotState.READY)

    def _without_withdrawn(self, work: Work) -> Work:
        """What is left of a piece of work of which items were cancelled before it began."""
        with self._holder.lock:
            self._work_id, self._work_items = work.work_id, work.items
            if not self._withdrawn:
                return work
            names = {item for number, item in self._withdrawn if number == work.work_id}
            # Numbers only rise: what is older than this will never come.
            self._withdrawn = {one for one in self._withdrawn if one[0] > work.work_id}
        gone = [item for item in work.items if None in names or item in names]
        if gone:
            now = time.time()
            outcomes = tuple(dead_outcome(item, Cause.CANCELLED, "", now) for item in gone)
            self._sink(SlotOutcomes(self.slot_id, outcomes))
        kept = [place for place, item in enumerate(work.items) if item not in gone]
        return part_of(work, kept)

    def _command(self, work: Work) -> None:
        self._holder.settle_memory()
        self._holder.kills.mark()
        process = CommandProcess(self._commands)
        task = WatchedTask(
            process,
            work.items,
            time.monotonic(),
            self._holder.limits,
            deadline_seconds=work.deadline_seconds,
            asked=lambda: False,
        )
        self._holder.watch(task)
        outcome = run_command(work, self._environ, self._keep_open, self._commands)
        self._holder.used = True
        self._holder.watch(None)
        ended_for = task.ended(outcome.item)
        oom_kills = self._holder.kills.since() if outcome.exit_status else None
        outcome = judged_command(outcome, ended_for, task.why, oom_kills, self._patterns)
        self._sink(SlotOutcomes(self.slot_id, (outcome,)))

    def _perform(self, work: Work) -> bool:
        """Do one piece of work; False when the slot has to be given up."""
        done, self._ends = 0, len(work.items)
        while done < self._ends:
            if not self._have_runner(unfinished=tuple(work.items[done:])):
                return False
            piece = self._piece(work, done)
            task, began_at = self._task_for(piece), time.time()
            reported = self._do(piece, task)
            done += reported
            if reported < min(len(piece.items), self._ends - done + reported):
                self._tell_death(work, done, task, began_at)
                return True
        self._sink(SlotIdle(self.slot_id, work.work_id))
        return True

    def _have_runner(self, *, unfinished: tuple[int, ...]) -> bool:
        most = self._setup.max_tasks_per_worker if self._setup else None
        if self._holder.runner is not None and most is not None and self._holder.taken >= most:
            self._holder.end()
        if self._holder.runner is not None and not self._holder.runner.alive:
            # It died between two pieces of work, which is no attempt at this one.
            self._holder.end()
        return self._holder.runner is not None or self._start(unfinished=unfinished)

    def _start(self, *, unfinished: tuple[int, ...]) -> bool:
        """Start a runner that is set up; False when the slot has to be given up."""
        assert self._setup is not None
        problem = self._holder.start(self._setup, first=not unfinished)
        runner = self._holder.runner
        if problem is None and runner is not None:
            self._sink(SlotReady(self.slot_id, runner.pid))
            return True
        if problem:
            self._enter(SlotState.FAILED)
            self._sink(SlotFailed(self.slot_id, problem, unfinished))
        return False

    def _piece(self, work: Work, done: int) -> Work:
        """What goes to the present process at once: all, unless a limit counts single items."""
        most = self._setup.max_tasks_per_worker if self._setup else None
        room = len(work.items) if most is None else most - self._holder.taken
        if work.deadline_seconds is not None or work.stream:
            room = 1
        if done == 0 and room >= len(work.items):
            return work
        return part_of(work, range(done, min(done + room, len(work.items))))

    def _task_for(self, piece: Work) -> WatchedTask:
        assert self._holder.runner is not None
        return WatchedTask(
            RunnerProcess(self._holder.runner, piece.work_id),
            piece.items,
            time.monotonic(),
            self._holder.limits,
            deadline_seconds=piece.deadline_seconds,
        )

    def _do(self, piece: Work, task: WatchedTask) -> int:
        """Have a piece done, and say how many of its items were reported."""
        runner = self._holder.runner
        assert runner is not None
        self._holder.taken += len(piece.items)
        self._holder.watch(task)
        reported = chunks = 0
        spoiled = False
        if self._holder.prints:
            self._holder.prints.item = piece.items[0] if len(piece.items) == 1 else None
        try:
            for report in runner.work(piece):
                task.heard()
                if report is None:
                    self._sink(SlotAcknowledged(self.slot_id, piece.work_id))
                elif isinstance(report, bytes):
                    self._sink(SlotChunk(self.slot_id, piece.items[0], chunks, report))
                    chunks += 1
                elif isinstance(report, Recalled):
                    self._ends -= len(report.items)
                    self._sink(SlotRecalled(self.slot_id, piece.work_id, report.items))
                else:
                    outcomes: Sequence[Outcome] = report
                    if task.doomed or not isinstance(report, Successes):
                        outcomes = tuple(self._judge(task, outcome) for outcome in report)
                        spoiled = spoiled or any(one.cause in SPOILING for one in outcomes)
                    reported += len(outcomes)
                    self._print_all()
                    self._holder.deaths = 0
                    self._sink(SlotOutcomes(self.slot_id, outcomes))
            self._print_all()
        except WorkerDied as error:
            self._lose(runner, str(error))
        except Exception as error:
            # The border to a child: whatever it sends, its slot goes on with another one.
            logger.exception("slot %d: worker %d cannot be understood", self.slot_id, runner.pid)
            runner.kill()
            runner.close()
            self._lose(runner, str(error) or type(error).__name__)
        finally:
            self._holder.watch(None)
        if spoiled:
            self._holder.end()
        return reported

    def _print_all(self) -> None:
        if self._holder.prints:
            self._holder.prints.drain()
            self._holder.prints.item = None

    def _judge(self, task: WatchedTask, outcome: Outcome) -> Outcome:
        if outcome.payload and not task.doomed and outcome.ending == "succeeded":
            return outcome
        with self._holder.lock:
            ended_for = task.ended(outcome.item)
        return judged_report(outcome, ended_for, task.why, self._patterns)

    def _lose(self, runner: Runner, reason: str) -> None:
        """The worker is gone; what it had not reported is told by :meth:`_tell_death`."""
        self._holder.forget()
        evidence = Evidence(returncode=runner.returncode, oom_kills=self._holder.kills.since())
        finding = classify(evidence, self._patterns)
        # Its exit status is no item's: to us it just went.
        known = finding.cause is not Cause.EXIT_STATUS
        words = f" ({finding.words})" if finding.words else ""
        self._loss = Loss(f"{reason}{words}", finding.cause if known else Cause.CLOSED)

    def _tell_death(self, work: Work, done: int, task: WatchedTask, began_at: float) -> None:
        """Of the items that were not reported: those that we ended, and those that went along."""
        unfinished = work.items[done : self._ends]
        reason = self._loss.reason
        ended = {item: task.doomed[item] for item in unfinished if item in task.doomed}
        rest = tuple(item for item in unfinished if item not in ended)
        if ended:
            logger.info("slot %d: %s, as it was to", self.slot_id, reason)
            outcomes = tuple(
                dead_outcome(item, cause, task.why and f"it {task.why}", began_at)
                for item, cause in ended.items()
            )
            self._sink(SlotOutcomes(self.slot_id, outcomes))
        else:
            logger.warning("slot %d: %s", self.slot_id, reason)
        cause = Cause.COLLATERAL if ended else self._loss.cause
        self._sink(SlotDied(self.slot_id, work.work_id, rest, reason, time.time(), cause))
