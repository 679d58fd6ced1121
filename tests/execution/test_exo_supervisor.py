"""exo's own interface over one of our slots, without the holes of exo's own supervisor."""

from __future__ import annotations

import logging
import os

import anyio
import pytest
from exo_tasks import Task, TaskId, handle

from exo.gpu.execution.exo_supervisor import (
    MOST_TASKS,
    ChunkGenerated,
    ExoRunnerSupervisor,
    RecentIds,
    RunnerStatus,
    RunnerStatusUpdated,
    TaskAcknowledged,
    TaskStatus,
    TaskStatusUpdated,
)
from exo.gpu.vocabulary.errors import ExecutionError, ExecutorClosed
from exo.gpu.vocabulary.job import SlotAcknowledged

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
TERMINAL = set(TaskStatus) - {TaskStatus.RUNNING}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    pytest.importorskip(request.param)
    return request.param


class Sink:
    """Stands for exo's event bus."""

    def __init__(self) -> None:
        self.events: list = []
        self.changed = anyio.Event()

    async def send(self, item, /) -> None:
        self.events.append(item)
        self.changed.set()
        self.changed = anyio.Event()

    def ends(self, task_id: str) -> list[TaskStatusUpdated]:
        return [
            one
            for one in self.events
            if isinstance(one, TaskStatusUpdated)
            and one.task_id == task_id
            and one.task_status in TERMINAL
        ]

    async def end_of(self, task_id: str) -> TaskStatusUpdated:
        with anyio.fail_after(WAIT_SECONDS):
            while not self.ends(task_id):
                await self.changed.wait()
        return self.ends(task_id)[0]

    async def until(self, wanted) -> None:
        with anyio.fail_after(WAIT_SECONDS):
            while wanted not in self.events:
                await self.changed.wait()


class Runner:
    """A supervisor that runs beside the test, as exo's worker has it."""

    def __init__(self, **options) -> None:
        self.sink = Sink()
        self.options = options

    async def __aenter__(self) -> Runner:
        self.supervisor = await ExoRunnerSupervisor.create(
            handler=handle, event_sender=self.sink, **self.options
        )
        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.group.start_soon(self.supervisor.run)
        return self

    async def __aexit__(self, *details) -> None:
        self.supervisor.shutdown()
        await self.group.__aexit__(*details)
        # Rule: whatever the test did, every task that was taken has exactly one end.
        acknowledged = {
            one.task_id for one in self.sink.events if isinstance(one, TaskAcknowledged)
        }
        assert all(len(self.sink.ends(task_id)) == 1 for task_id in acknowledged)
        assert not self.supervisor.pending
        assert not self.supervisor.in_progress
        assert self.supervisor.status is RunnerStatus.SHUTDOWN


async def test_a_task_streams_its_chunks_and_completes():
    async with Runner() as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "count", 3))
        assert await runner.sink.end_of("a") == TaskStatusUpdated("a", TaskStatus.COMPLETE)
        of_a = [one for one in runner.sink.events if getattr(one, "task_id", "") == "a"]
        assert of_a == [
            TaskAcknowledged("a"),
            TaskStatusUpdated("a", TaskStatus.RUNNING),
            *(ChunkGenerated("a", number) for number in range(3)),
            TaskStatusUpdated("a", TaskStatus.COMPLETE),
        ]
        assert "a" in runner.supervisor.completed
        await runner.sink.until(RunnerStatusUpdated(RunnerStatus.READY))
        told = [one for one in runner.sink.events if isinstance(one, RunnerStatusUpdated)]
        assert RunnerStatus.RUNNING in {one.runner_status for one in told}


async def test_s1_a_process_that_exits_with_status_0_fails_its_task():
    async with Runner() as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "exit", 0))
        end = await runner.sink.end_of("a")
        assert end.task_status is TaskStatus.FAILED
        assert "exited with status 0" in end.error_message
        await runner.supervisor.start_task(Task(TaskId("b"), "count", 1))
        assert (await runner.sink.end_of("b")).task_status is TaskStatus.COMPLETE


async def test_s2_a_crash_before_the_first_task_ends_each_task():
    """While it starts: no task waits for a runner that will never be."""
    async with Runner(environ={**os.environ, "PYTHONHOME": "/nowhere"}) as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "count", 1))
        end = await runner.sink.end_of("a")
        assert end.task_status is TaskStatus.FAILED
        assert "no worker starts" in end.error_message
        await runner.sink.until(RunnerStatusUpdated(RunnerStatus.FAILED))
        with pytest.raises(ExecutorClosed):
            while True:
                await runner.supervisor.start_task(Task(TaskId("b"), "count", 1))
        runner.supervisor.status = RunnerStatus.SHUTDOWN


async def test_s3_a_connection_that_closes_ends_the_task():
    async with Runner() as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "close", 0))
        assert (await runner.sink.end_of("a")).task_status is TaskStatus.FAILED
        await runner.supervisor.start_task(Task(TaskId("b"), "count", 1))
        assert (await runner.sink.end_of("b")).task_status is TaskStatus.COMPLETE


async def test_s4_an_acknowledgement_of_something_unknown_is_a_warning(caplog):
    async with Runner() as runner:
        with caplog.at_level(logging.WARNING):
            runner.supervisor._inbox.put(SlotAcknowledged(0, 999))
            await runner.supervisor.start_task(Task(TaskId("a"), "count", 1))
            assert (await runner.sink.end_of("a")).task_status is TaskStatus.COMPLETE
        assert "acknowledged work 999" in caplog.text


async def test_s5_submitting_waits_for_nothing_that_runs():
    """Nor does a cancel: both return while the runner is at a task that never ends."""
    async with Runner() as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "wait", 0))
        await runner.sink.until(TaskAcknowledged("a"))
        for number in range(50):
            await runner.supervisor.start_task(Task(TaskId(f"later {number}"), "count", 1))
        assert len(runner.supervisor.pending) == 50
        await runner.supervisor.cancel_task("later 7")
        await runner.supervisor.cancel_task("a")
        assert (await runner.sink.end_of("a")).task_status is TaskStatus.CANCELLED
        assert (await runner.sink.end_of("later 7")).task_status is TaskStatus.CANCELLED
        assert (await runner.sink.end_of("later 49")).task_status is TaskStatus.COMPLETE
        assert set(runner.supervisor.cancelled) == {"a", "later 7"}


async def test_s6_nothing_that_is_remembered_grows_for_ever():
    recent = RecentIds(most=3)
    for number in range(10):
        recent.add(str(number))
    assert (list(recent), len(recent)) == (["7", "8", "9"], 3)
    async with Runner() as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "wait", 0))
        for number in range(MOST_TASKS - 1):
            await runner.supervisor.start_task(Task(TaskId(str(number)), "count", 0))
        with pytest.raises(ExecutionError, match="wait already"):
            await runner.supervisor.start_task(Task(TaskId("one more"), "count", 0))


async def test_a_task_that_fails_or_takes_too_long_says_so():
    async with Runner(task_timeout=0.5) as runner:
        await runner.supervisor.start_task(Task(TaskId("a"), "fail", "no weights"))
        end = await runner.sink.end_of("a")
        assert (end.task_status, end.error_message) == (TaskStatus.FAILED, "ValueError: no weights")
        await runner.supervisor.start_task(Task(TaskId("b"), "sleep", 600))
        assert (await runner.sink.end_of("b")).task_status is TaskStatus.TIMED_OUT


async def test_a_task_is_taken_once(caplog):
    async with Runner() as runner:
        for _ in range(2):
            await runner.supervisor.start_task(Task(TaskId("a"), "count", 1))
        await runner.sink.end_of("a")
        await runner.supervisor.start_task(Task(TaskId("a"), "count", 1))
        await runner.supervisor.cancel_task("never seen")
        assert caplog.text.count("submitted before") == 2
        assert "nothing to cancel" in caplog.text


async def test_a_runner_that_is_cancelled_leaves_no_process():
    sink = Sink()
    supervisor = await ExoRunnerSupervisor.create(handler=handle, event_sender=sink)
    await supervisor.start_task(Task(TaskId("a"), "wait", 0))
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await sink.until(TaskStatusUpdated("a", TaskStatus.RUNNING))
        with anyio.fail_after(WAIT_SECONDS):
            while not any(isinstance(one, ChunkGenerated) for one in sink.events):
                await sink.changed.wait()
        group.cancel_scope.cancel()
    (worker,) = [one.chunk for one in sink.events if isinstance(one, ChunkGenerated)]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert len(sink.ends("a")) == 1
