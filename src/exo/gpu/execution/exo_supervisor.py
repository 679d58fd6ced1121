"""One of our slots behind the interface by which exo drives its runners.

It is offered by structure; nothing of exo is imported. Tasks go in, and events come out through
an async sink, each task ending in exactly one of its terminal states. Beyond what exo's own
supervisor promises: submitting waits for nothing, a process that ends with status 0 or a
connection that closes ends the task as failed, what is not known is a warning, and nothing that
is remembered grows for ever.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from exo.gpu.execution.exo_words import (
    ChunkGenerated,
    EventSink,
    RecentIds,
    RunnerStatus,
    RunnerStatusUpdated,
    Task,
    TaskAcknowledged,
    TaskStatus,
    TaskStatusUpdated,
)
from exo.gpu.execution.payloads import dump, error_of, load_result
from exo.gpu.execution.supervisor import RunnerSupervisor
from exo.gpu.vocabulary.errors import ExecutionError, ExecutorClosed, NotTransferable
from exo.gpu.vocabulary.job import (
    Cause,
    Ending,
    Outcome,
    SlotAcknowledged,
    SlotChunk,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotOutcomes,
    SlotSetup,
    SlotState,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

logger = logging.getLogger(__name__)

# Tasks that wait or run; more are refused.
MOST_TASKS = 256

# How far a task may be ahead of the sink, in chunks.
CREDITS = 16

_STOP_SECONDS = 5.0


_STATUS = {
    SlotState.STARTING: RunnerStatus.CONNECTING,
    SlotState.READY: RunnerStatus.READY,
    SlotState.RUNNING: RunnerStatus.RUNNING,
    SlotState.DRAINING: RunnerStatus.SHUTTING_DOWN,
    SlotState.STOPPED: RunnerStatus.SHUTDOWN,
    SlotState.FAILED: RunnerStatus.FAILED,
}
_OVER = (RunnerStatus.SHUTDOWN, RunnerStatus.FAILED)


class ExoRunnerSupervisor:
    """Made by :meth:`create`; :meth:`run` does the work until :meth:`shutdown`.

    ``pending`` holds an event for each task that was not acknowledged yet, ``in_progress`` the
    tasks that were; ``completed`` and ``cancelled`` remember the newest ids. All methods belong
    to the event loop that runs :meth:`run`. A process that dies fails its task, and is replaced.
    """

    def __init__(
        self,
        handler: Callable[[Any], Any],
        event_sender: EventSink,
        *,
        environ: Mapping[str, str] | None,
        initialize_timeout: float,
        task_timeout: float | None,
    ) -> None:
        self.status = RunnerStatus.CONNECTING
        self.pending: dict[str, anyio.Event] = {}
        self.in_progress: dict[str, Task] = {}
        self.completed = RecentIds()
        self.cancelled = RecentIds()
        self._handler = dump(handler, "the handler")
        self._sender = event_sender
        self._environ = dict(os.environ if environ is None else environ)
        self._setup = SlotSetup(import_path=tuple(sys.path), start_seconds=initialize_timeout)
        self._task_timeout = task_timeout
        self._numbers = itertools.count()
        self._tasks: dict[int, Task] = {}
        self._waiting: list[Work] = []  # before run() has begun
        self._problems: dict[int, str] = {}
        self._slot: RunnerSupervisor | None = None
        self._closed = False
        self._inbox: queue.SimpleQueue[SlotEvent | SlotState | None] = queue.SimpleQueue()

    @classmethod
    async def create(
        cls,
        *,
        handler: Callable[[Any], Any],
        event_sender: EventSink,
        environ: Mapping[str, str] | None = None,
        initialize_timeout: float = 400,
        task_timeout: float | None = None,
    ) -> Self:
        """One that has not begun. ``handler`` gets each task in the runner's process.

        It yields chunks, or returns one result. ``environ`` pins the process to its device, as
        :func:`~exo.gpu.execution.pinning.apply_changes` makes it; the times are in seconds.

        Raises:
            NotTransferable: when the handler cannot be sent to a process.

        """
        await anyio.lowlevel.checkpoint()
        return cls(
            handler,
            event_sender,
            environ=environ,
            initialize_timeout=initialize_timeout,
            task_timeout=task_timeout,
        )

    async def run(self) -> None:
        """Start the process, hand on its events, and end it at the end or when cancelled."""
        await self._tell_status(RunnerStatus.CONNECTING)
        put = self._inbox.put
        self._slot = RunnerSupervisor(
            0, environ=self._environ, keep_open=(), setup=self._setup, sink=put, on_state=put
        )
        for work in self._waiting:
            self._slot.submit(work)
        try:
            if self._closed:
                self._slot.ask_to_stop(kill=True)
            while self.status not in _OVER:
                event = await anyio.to_thread.run_sync(self._inbox.get, abandon_on_cancel=True)
                if event is not None:
                    await self._hear(event)
        finally:
            self._closed = True
            self._inbox.put(None)  # for the thread that a cancel left behind
            with anyio.CancelScope(shield=True):
                await self._end()

    async def start_task(self, task: Task) -> None:
        """Queue a task; returns at once, whatever the runner is at.

        One whose id is known already is dropped with a warning, as exo does.

        Raises:
            ExecutorClosed: after shutdown, or when the runner has failed.
            ExecutionError: when too many wait already.
            NotTransferable: when the task cannot be sent to the process.

        """
        await anyio.lowlevel.checkpoint()
        task_id = task.task_id
        if task_id in self.pending or task_id in self.in_progress or task_id in self.completed:
            logger.warning("task %s was submitted before and is dropped", task_id)
            return
        if self._closed:
            raise ExecutorClosed(f"the runner takes no more work: it is {self.status}")
        if len(self._tasks) >= MOST_TASKS:
            raise ExecutionError(f"{MOST_TASKS} tasks wait already: try {task_id} again later")
        number = next(self._numbers)
        work = Work(
            work_id=number,
            items=(number,),
            payloads=(dump((task,), f"task {task_id}"),),
            function=0,
            function_payload=self._handler,
            deadline_seconds=self._task_timeout,
            stream=True,
            credits=CREDITS,
        )
        self.pending[task_id] = anyio.Event()
        self._tasks[number] = task
        if self._slot is None:
            self._waiting.append(work)
        else:
            self._slot.submit(work)

    async def cancel_task(self, task_id: str) -> None:
        """Ask a task to end, then make it; returns at once. An unknown one is a warning."""
        await anyio.lowlevel.checkpoint()
        for number, task in self._tasks.items():
            if task.task_id == task_id:
                self.cancelled.add(task_id)
                self._cancel(number)
                return
        logger.warning(
            "task %s is not known here, or has ended: there is nothing to cancel", task_id
        )

    def shutdown(self) -> None:
        """Cancel what runs and end the process; :meth:`run` returns then. Harmless twice."""
        self._closed = True
        for number, task in self._tasks.items():
            self.cancelled.add(task.task_id)
            self._cancel(number)
        if self._slot is not None:
            self._slot.ask_to_stop(kill=False)

    def _cancel(self, number: int) -> None:
        if self._slot is not None:
            self._slot.cancel(number)
        else:
            self._problems[number] = "it was cancelled before the runner began"

    async def _hear(self, event: SlotEvent | SlotState) -> None:
        match event:
            case SlotState():
                await self._tell_status(_STATUS[event])
            case SlotAcknowledged():
                await self._acknowledge(event.work_id)
            case SlotChunk():
                await self._hand_on(event)
            case SlotOutcomes():
                for outcome in event.outcomes:
                    await self._finish(outcome.item, *_terminal(outcome))
            case SlotDied():
                for number in event.unfinished:
                    await self._finish(number, TaskStatus.FAILED, event.reason)
            case SlotFailed():
                for number in tuple(self._tasks):
                    await self._finish(number, TaskStatus.FAILED, event.reason)
            case _:
                pass  # idle and ready are told as states

    async def _acknowledge(self, number: int) -> None:
        task = self._tasks.get(number)
        waiting = None if task is None else self.pending.pop(task.task_id, None)
        if task is None or waiting is None:
            logger.warning("the runner acknowledged work %d, which nobody waits for", number)
            return
        waiting.set()
        self.in_progress[task.task_id] = task
        await self._sender.send(TaskAcknowledged(task.task_id))
        await self._sender.send(TaskStatusUpdated(task.task_id, TaskStatus.RUNNING))

    async def _hand_on(self, event: SlotChunk) -> None:
        task = self._tasks.get(event.item)
        if task is None or self._slot is None:
            return
        try:
            chunk = load_result(event.payload)
        except NotTransferable as error:
            self._problems[event.item] = str(error)
            self._slot.cancel(event.item)
            return
        await self._sender.send(ChunkGenerated(task.task_id, chunk))
        self._slot.allow(event.item, 1)

    async def _finish(self, number: int, status: TaskStatus, message: str = "") -> None:
        """The one terminal state of a task."""
        task = self._tasks.pop(number, None)
        if task is None:
            logger.warning("the runner ended work %d, which nobody waits for", number)
            return
        problem = self._problems.pop(number, None)
        if problem is not None:
            status, message = TaskStatus.FAILED, problem
        waiting = self.pending.pop(task.task_id, None)
        if waiting is not None:
            waiting.set()
        self.in_progress.pop(task.task_id, None)
        self.completed.add(task.task_id)
        await self._sender.send(TaskStatusUpdated(task.task_id, status, message))

    async def _tell_status(self, status: RunnerStatus) -> None:
        self.status = status
        await self._sender.send(RunnerStatusUpdated(status))

    async def _end(self) -> None:
        """Whatever happened: the process is gone, and each task has had its end told."""
        if self._slot is not None:
            slot = self._slot
            await anyio.to_thread.run_sync(
                lambda: slot.stop(kill=False, timeout_seconds=_STOP_SECONDS)
            )
        while not self._inbox.empty():
            event = self._inbox.get()
            if event is not None and not isinstance(event, SlotChunk):
                await self._hear(event)
        for number in tuple(self._tasks):
            await self._finish(number, TaskStatus.CANCELLED, "the runner was shut down")


def _terminal(outcome: Outcome) -> tuple[TaskStatus, str]:
    if outcome.ending is Ending.SUCCEEDED:
        return TaskStatus.COMPLETE, ""
    if outcome.cause is Cause.CANCELLED:
        return TaskStatus.CANCELLED, outcome.reason
    error = error_of(outcome)
    message = f"{type(error).__name__}: {error}"
    return TaskStatus.TIMED_OUT if outcome.cause is Cause.TIMEOUT else TaskStatus.FAILED, message
