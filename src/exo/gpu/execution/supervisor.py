"""What keeps one slot of a device at work: a thread, and a runner that is replaced when it dies."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.execution.runner import Recalled, Runner, kill_group, run_command
from exo.gpu.vocabulary.errors import WorkerDied
from exo.gpu.vocabulary.job import (
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotReady,
    SlotRecalled,
    SlotSetup,
    Work,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# A process that cannot even be set up so many times in a row will not be the next time.
STARTS_IN_A_ROW = 3


class RunnerSupervisor:
    """One slot: takes work in order, one piece at a time, and reports every ending exactly once.

    Events go to ``sink`` from the slot's own thread. A slot without ``setup`` runs shell
    commands only, each in a fresh process.
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
    ) -> None:
        self.slot_id = slot_id
        self._python = python
        self._environ = environ
        self._keep_open = keep_open
        self._setup = setup
        self._sink = sink
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._stopping = False
        self._runner: Runner | None = None
        self._commands: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(
            target=self._serve, name=f"exo-gpu-slot-{slot_id}", daemon=True
        )
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue a piece of work; returns at once."""
        self._inbox.put(work)

    def ask_to_stop(self, *, kill: bool) -> None:
        """Let the slot end after its current work, or with ``kill`` at once; returns at once."""
        self._stopping = True
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

    def _kill(self) -> None:
        if self._runner is not None:
            self._runner.kill()
        for process in list(self._commands):
            kill_group(process)

    def _serve(self) -> None:
        if self._setup is not None and not self._start(unfinished=()):
            return
        if self._setup is None:
            self._sink(SlotReady(self.slot_id, 0))
        while (work := self._inbox.get()) is not None:
            if self._stopping:
                continue
            if work.command is not None:
                outcome = run_command(work, self._environ, self._keep_open, self._commands)
                self._sink(SlotOutcomes(self.slot_id, (outcome,)))
                self._sink(SlotIdle(self.slot_id, work.work_id))
            elif not self._perform(work):
                break
        if self._runner is not None:
            self._runner.close()

    def _perform(self, work: Work) -> bool:
        """Do one piece of work; False when the slot has to be given up."""
        if self._runner is not None and not self._runner.alive:
            # It died between two pieces of work, which is no attempt at this one.
            self._runner.close()
            self._runner = None
        if self._runner is None and not self._start(unfinished=tuple(work.items)):
            return False
        runner = self._runner
        assert runner is not None
        reported, ends = 0, len(work.items)
        try:
            for report in runner.work(work):
                if isinstance(report, Recalled):
                    ends -= len(report.items)
                    self._sink(SlotRecalled(self.slot_id, work.work_id, report.items))
                elif report is not None and not isinstance(report, bytes):
                    reported += len(report)
                    self._sink(SlotOutcomes(self.slot_id, report))
        except Exception as error:
            if not isinstance(error, WorkerDied):
                logger.exception(
                    "slot %d: worker %d cannot be understood", self.slot_id, runner.pid
                )
                runner.kill()
                runner.close()
            self._runner = None
            reason = str(error) or type(error).__name__
            logger.warning("slot %d: %s", self.slot_id, reason)
            unfinished = tuple(work.items[reported:ends])
            self._sink(SlotDied(self.slot_id, work.work_id, unfinished, reason, time.time()))
            return True
        self._sink(SlotIdle(self.slot_id, work.work_id))
        return True

    def _start(self, *, unfinished: tuple[int, ...]) -> bool:
        """Start a runner that is set up; False when the slot has to be given up."""
        assert self._setup is not None
        problem = ""
        for _ in range(STARTS_IN_A_ROW):
            if self._stopping:
                return False
            try:
                runner = self._runner = Runner(self._environ, self._keep_open, self._python)
                refused = runner.set_up(self._setup)
            except (OSError, WorkerDied) as error:
                problem = f"no worker starts: {error}"
                continue
            if refused is None:
                self._sink(SlotReady(self.slot_id, runner.pid))
                return True
            problem = refused
            runner.close()
            if not unfinished:
                break  # at the first start it fails for good; later it may have been the moment
        self._runner = None
        self._sink(SlotFailed(self.slot_id, problem, unfinished))
        return False
