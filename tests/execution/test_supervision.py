"""A slot under supervision: cancels, deadlines, heartbeats, fresh processes, streams, output."""

from __future__ import annotations

import os
import queue
import signal
import sys
from pathlib import Path

import awkward
import functions
import pytest

from exo.gpu.execution.payloads import dump, error_of, load_result
from exo.gpu.execution.supervisor import RunnerSupervisor
from exo.gpu.execution.watched_task import Limits
from exo.gpu.vocabulary.errors import TimedOut
from exo.gpu.vocabulary.job import (
    Cause,
    Ending,
    SlotAcknowledged,
    SlotChunk,
    SlotDied,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotReady,
    SlotSetup,
    SlotState,
    Work,
)

WAIT_SECONDS = 60
SETUP = SlotSetup(import_path=(str(Path(__file__).parent), *sys.path))


class Slot:
    """A supervisor with its events in a queue; impatient unless told otherwise."""

    def __init__(self, setup: SlotSetup | None = SETUP, **options) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.states: list[SlotState] = []
        options.setdefault("limits", Limits(grace_seconds=0.2))
        self.supervisor = RunnerSupervisor(
            1,
            environ=dict(os.environ),
            keep_open=(),
            setup=setup,
            sink=self.events.put,
            on_state=self.states.append,
            **options,
        )
        self.number = 0

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop(kill=True, timeout_seconds=WAIT_SECONDS)

    def submit(self, function, *calls, **options) -> int:
        self.number += 1
        self.supervisor.submit(
            Work(
                work_id=self.number,
                items=tuple(range(len(calls))),
                payloads=tuple(dump(call, "an item") for call in calls),
                function=self.number,
                function_payload=dump(function, "f"),
                **options,
            )
        )
        return self.number

    def end(self):
        """All that comes until the work is over, without the news of new processes."""
        events = []
        while not events or not isinstance(events[-1], (SlotIdle, SlotDied, SlotFailed)):
            event = self.events.get(timeout=WAIT_SECONDS)
            if not isinstance(event, SlotReady):
                events.append(event)
        return events

    def outcomes(self):
        return [
            one for event in self.end() if isinstance(event, SlotOutcomes) for one in event.outcomes
        ]


@pytest.fixture
def slot():
    with Slot() as slot:
        yield slot


def appear(path: Path) -> None:
    while not path.exists():
        os.sched_yield()


def test_a_cancelled_item_is_asked_first_and_its_worker_goes_on(slot, tmp_path):
    """Cooperative: the function may tidy up, and the process stays warm."""
    mark = tmp_path / "mark"
    slot.submit(awkward.pid, (0,))
    warm = load_result(slot.outcomes()[0].payload)
    work = slot.submit(awkward.tidy_up_when_interrupted, (str(mark),))
    appear(mark)
    slot.supervisor.cancel(work, 0)
    (outcome,) = slot.outcomes()
    assert (outcome.ending, outcome.cause) == (Ending.DIED, Cause.CANCELLED)
    assert Path(f"{mark}.tidied").exists()
    slot.submit(awkward.pid, (0,))
    assert load_result(slot.outcomes()[0].payload) == warm


def test_one_that_hears_nothing_is_killed_and_takes_nobody_down(slot, tmp_path):
    """Asked, SIGTERM, SIGKILL; the others of its chunk are not at fault and can go again."""
    mark = tmp_path / "mark"
    work = slot.submit(awkward.be_stubborn, (str(mark),), (str(mark),))
    appear(mark)
    slot.supervisor.cancel(work, 0)
    *_, outcomes, death = slot.end()
    assert [(one.item, one.cause) for one in outcomes.outcomes] == [(0, Cause.CANCELLED)]
    assert (death.unfinished, death.cause) == ((1,), Cause.COLLATERAL)
    assert "SIGKILL" in death.reason
    slot.submit(functions.double, (4,))
    assert load_result(slot.outcomes()[0].payload) == 8


def test_a_cancelled_item_that_waits_never_begins(slot, tmp_path):
    mark, other = tmp_path / "mark", tmp_path / "other"
    first = slot.submit(awkward.wait_for_ever, (str(mark),))
    slot.supervisor.cancel(first + 1, 0)
    second = slot.submit(awkward.wait_for_ever, (str(other),))
    appear(mark)
    slot.supervisor.cancel(first)
    assert slot.outcomes()[0].cause is Cause.CANCELLED
    assert slot.outcomes()[0].cause is Cause.CANCELLED
    assert second == first + 1
    assert not other.exists()


def test_cancelling_what_has_ended_or_never_was_harms_nothing(slot):
    work = slot.submit(functions.double, (1,))
    assert slot.outcomes()[0].ending is Ending.SUCCEEDED
    slot.supervisor.cancel(work, 0)
    slot.supervisor.cancel(99)
    slot.submit(functions.double, (2,))
    assert load_result(slot.outcomes()[0].payload) == 4


def test_an_item_past_its_deadline_ends_alone(slot, tmp_path):
    """Each item of a piece has the whole deadline; the one that keeps it succeeds."""
    slot.submit(functions.sleep_for, (0.0,), (60.0,), (0.0,), deadline_seconds=0.5)
    outcomes = slot.outcomes()
    assert [one.cause for one in outcomes] == [None, Cause.TIMEOUT, None]
    error = error_of(outcomes[1])
    assert isinstance(error, TimedOut)
    assert "longer than 0.5 s" in str(error)


def test_a_command_past_its_deadline_is_ended_with_its_whole_group(tmp_path):
    with Slot(setup=None) as slot:
        command = f"sleep 600 & echo $! > {tmp_path}/child; trap '' TERM; wait; sleep 600"
        slot.supervisor.submit(Work(work_id=1, items=(0,), command=command, deadline_seconds=0.5))
        (outcome,) = slot.outcomes()
        assert outcome.cause is Cause.TIMEOUT
        child = int((tmp_path / "child").read_text())
        with pytest.raises(ProcessLookupError):
            while True:
                os.kill(child, 0)


def test_a_frozen_worker_is_noticed_and_replaced(tmp_path):
    """The heartbeat: neither an answer nor any computing."""
    mark = tmp_path / "mark"
    with Slot(limits=Limits(grace_seconds=0.2, heartbeat_seconds=0.4)) as slot:
        slot.submit(awkward.stop_itself, (str(mark),))
        outcomes, death = slot.end()
        assert outcomes.outcomes[0].cause is Cause.UNRESPONSIVE
        assert "has not answered" in outcomes.outcomes[0].reason
        assert death.unfinished == ()
        slot.submit(awkward.stop_itself, (str(mark),))
        assert load_result(slot.outcomes()[0].payload) == "went on"


def test_code_that_lets_no_thread_run_is_busy_and_not_dead():
    """Rule: a long call in C that computes outlives many heartbeats."""
    with Slot(limits=Limits(grace_seconds=0.2, heartbeat_seconds=1.0)) as slot:
        slot.submit(awkward.hold_the_interpreter, (6_000_000,))
        assert load_result(slot.outcomes()[0].payload) == 7**6_000_000 % 10


def test_a_start_that_takes_too_long_gives_the_slot_up():
    initializer = dump((functions.sleep_for, (600.0,)), "i")
    setup = SlotSetup(import_path=SETUP.import_path, initializer=initializer, start_seconds=0.3)
    with Slot(setup) as slot:
        (failed,) = slot.end()
        assert "took longer than 0.3 s" in failed.reason
    assert slot.states[-1] is SlotState.FAILED


@pytest.mark.parametrize(("most", "processes"), [(1, 4), (3, 2), (None, 1)])
def test_workers_are_replaced_after_so_many_items(most, processes):
    setup = SlotSetup(import_path=SETUP.import_path, max_tasks_per_worker=most)
    with Slot(setup) as slot:
        slot.submit(awkward.pid, *[(0,)] * 4)
        assert len({load_result(one.payload) for one in slot.outcomes()}) == processes


def test_the_states_of_a_slot_can_be_heard_and_read(slot):
    slot.submit(functions.double, (1,))
    slot.end()
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)
    assert slot.states == [
        SlotState.READY,
        SlotState.RUNNING,
        SlotState.READY,
        SlotState.DRAINING,
        SlotState.STOPPED,
    ]
    assert slot.supervisor.state is SlotState.STOPPED


def test_what_workers_print_comes_with_the_item_that_printed_it():
    printed = []
    with Slot(on_output=printed.append) as slot:
        for word in ("one", "two"):
            slot.submit(awkward.speak, (word,))
            assert slot.outcomes()[0].ending is Ending.SUCCEEDED
    out = b"".join(one.data for one in printed if not one.is_stderr)
    lines = [b"out one\n", b"out two\n", b"raw \xff\x00\n", b"raw \xff\x00\n"]
    assert sorted(out.splitlines(keepends=True)) == lines
    assert b"".join(one.data for one in printed if one.is_stderr) == b"err one\nerr two\n"
    assert {one.item for one in printed} == {0}


def test_chunks_of_a_stream_come_in_order_and_never_too_far_ahead(slot, tmp_path):
    """Back-pressure: with so many credits the generator waits until more are given."""
    mark = tmp_path / "mark"
    work = slot.submit(awkward.count_slowly, (50, str(mark)), stream=True, credits=3)
    assert isinstance(slot.events.get(timeout=WAIT_SECONDS), SlotReady)
    assert slot.events.get(timeout=WAIT_SECONDS) == SlotAcknowledged(1, work)
    chunks = [slot.events.get(timeout=WAIT_SECONDS) for _ in range(3)]
    assert all(isinstance(one, SlotChunk) for one in chunks)
    while mark.read_text() != "3":
        os.sched_yield()
    assert slot.events.empty()
    slot.supervisor.allow(work, 47)
    *rest, outcomes, end = slot.end()
    assert [load_result(one.payload) for one in (*chunks, *rest)] == list(range(50))
    assert [one.number for one in (*chunks, *rest)] == list(range(50))
    assert outcomes.outcomes[0].ending is Ending.SUCCEEDED
    assert isinstance(end, SlotIdle)


def test_a_stream_is_cancelled_between_two_chunks(slot, tmp_path):
    mark = tmp_path / "mark"
    work = slot.submit(awkward.count_slowly, (50, str(mark)), stream=True, credits=2)
    appear(mark)
    slot.supervisor.cancel(work, 0)
    events = slot.end()
    assert events[-2].outcomes[0].cause is Cause.CANCELLED
    assert isinstance(events[-1], SlotIdle)
    assert Path(f"{mark}.closed").exists()


@pytest.mark.parametrize(
    ("function", "argument", "chunks", "cause"),
    [
        (awkward.yield_then_fail, (2,), 2, Cause.EXCEPTION),
        (awkward.yield_what_cannot_travel, (), 1, Cause.EXCEPTION),
        (functions.double, (3,), 0, None),
    ],
)
def test_a_stream_ends_once_whatever_it_does(slot, function, argument, chunks, cause):
    slot.submit(function, argument, stream=True, credits=8)
    events = slot.end()
    assert sum(isinstance(one, SlotChunk) for one in events) == chunks
    (outcomes,) = [one for one in events if isinstance(one, SlotOutcomes)]
    assert outcomes.outcomes[0].cause is cause


def test_a_stream_whose_process_dies_ends_after_its_chunks(slot):
    slot.submit(awkward.yield_then_die, (3,), stream=True, credits=8)
    events = slot.end()
    assert [load_result(one.payload) for one in events if isinstance(one, SlotChunk)] == [0, 1, 2]
    assert events[-1].unfinished == (0,)
    assert events[-1].cause is Cause.CLOSED


def test_a_worker_that_closes_its_sockets_is_one_death(slot):
    slot.submit(awkward.close_every_socket, (1,))
    death = slot.end()[-1]
    assert isinstance(death, SlotDied)
    assert death.cause is Cause.CLOSED
    slot.submit(functions.double, (4,))
    assert load_result(slot.outcomes()[0].payload) == 8


def test_a_function_that_forks_has_one_result(slot):
    """Rule: the child, which returns too, can report nothing and ends with the slot."""
    for _ in range(3):
        slot.submit(awkward.fork_and_return, (0,))
        (outcome,) = slot.outcomes()
        assert load_result(outcome.payload) == 0


def test_memory_that_a_limit_refuses_is_the_machines_and_the_worker_is_replaced(slot):
    slot.submit(awkward.pid, (0,))
    before = load_result(slot.outcomes()[0].payload)
    slot.submit(awkward.take_memory, (0,))
    (outcome,) = slot.outcomes()
    assert outcome.cause is Cause.OUT_OF_HOST_MEMORY
    assert "builtins.MemoryError" in outcome.names
    slot.submit(awkward.pid, (0,))
    assert load_result(slot.outcomes()[0].payload) != before


def test_deaths_in_a_row_are_followed_by_a_longer_wait_but_no_end(slot):
    for _ in range(4):
        slot.submit(functions.vanish, (3,))
        assert slot.end()[-1].cause is Cause.CLOSED
    slot.submit(functions.double, (4,))
    assert load_result(slot.outcomes()[0].payload) == 8


def test_a_kill_from_outside_is_told_as_such(slot, tmp_path):
    mark = tmp_path / "mark"
    slot.submit(awkward.pid, (0,))
    worker = load_result(slot.outcomes()[0].payload)
    slot.submit(awkward.wait_for_ever, (str(mark),))
    appear(mark)
    os.kill(worker, signal.SIGKILL)
    death = slot.end()[-1]
    assert (death.unfinished, death.cause) == ((0,), Cause.KILLED)


def test_memory_is_awaited_before_the_next_process_starts():
    """Rule: nothing starts where another process was, until its memory is said to be back."""
    calls = []
    setup = SlotSetup(import_path=SETUP.import_path, max_tasks_per_worker=1)
    with Slot(setup, settle=lambda go_on: calls.append(go_on())) as slot:
        slot.submit(awkward.pid, (0,), (0,), (0,))
        assert len(slot.outcomes()) == 3
    assert calls == [True, True]
