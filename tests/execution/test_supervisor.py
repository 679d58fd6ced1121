"""A slot reports every ending of every item exactly once, whatever the function does."""

from __future__ import annotations

import os
import pickle
import queue
import sys
from pathlib import Path

import functions
import pytest

from exo.gpu.execution.payloads import dump, load_error, load_result
from exo.gpu.execution.supervisor import RunnerSupervisor
from exo.gpu.vocabulary.errors import ExecutionError
from exo.gpu.vocabulary.job import (
    Ending,
    SlotDied,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotReady,
    SlotSetup,
    Work,
)

WAIT_SECONDS = 30


class Slot:
    """A supervisor with its events in a queue."""

    def __init__(
        self,
        setup: SlotSetup | None = None,
        *,
        commands: bool = False,
        python: str = sys.executable,
    ) -> None:
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.supervisor = RunnerSupervisor(
            7,
            environ=dict(os.environ),
            keep_open=(),
            setup=None if commands else setup or SlotSetup(import_path=tuple(sys.path)),
            sink=self.events.put,
            python=python,
        )

    def next(self, kind: type) -> object:
        event = self.events.get(timeout=WAIT_SECONDS)
        assert isinstance(event, kind), event
        return event

    def run(self, function, arguments, number: int | None = 0):
        payloads = tuple(dump((argument,), "an item") for argument in arguments)
        self.supervisor.submit(
            Work(
                work_id=1,
                items=tuple(range(len(arguments))),
                payloads=payloads,
                function=number,
                function_payload=dump(function, "f"),
            )
        )
        outcomes = []
        while True:
            event = self.events.get(timeout=WAIT_SECONDS)
            if isinstance(event, SlotOutcomes):
                outcomes.extend(event.outcomes)
            elif not isinstance(event, SlotReady):
                return outcomes, event


@pytest.fixture
def slot():
    slot = Slot()
    slot.next(SlotReady)
    yield slot
    slot.supervisor.stop(kill=True, timeout_seconds=WAIT_SECONDS)


def test_items_come_back_in_order_with_times(slot):
    outcomes, end = slot.run(functions.double, [1, 2, 3])
    assert isinstance(end, SlotIdle)
    assert [load_result(outcome.payload) for outcome in outcomes] == [2, 4, 6]
    assert all(outcome.ended_at >= outcome.started_at > 1.6e9 for outcome in outcomes)


def test_a_lambda_and_what_it_closes_over_travel_by_value(slot):
    offset = 10
    outcomes, _ = slot.run(lambda number: number + offset, [1])
    assert load_result(outcomes[0].payload) == 11


def test_an_exception_comes_back_with_the_workers_traceback(slot):
    outcomes, end = slot.run(functions.fail, [5])
    error = load_error(outcomes[0].payload)
    assert isinstance(end, SlotIdle)
    assert isinstance(error, ValueError)
    assert str(error) == "no 5"
    assert "in fail" in str(error.__cause__)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (functions.leave, "SystemExit"),
        (functions.fail_fussily, "Fussy"),
        (functions.make_unpicklable, "generator"),
    ],
)
def test_a_failure_that_cannot_travel_is_still_one_clear_failure(slot, function, word):
    outcomes, end = slot.run(function, [5, 6])
    assert isinstance(end, SlotIdle)
    assert [outcome.ending for outcome in outcomes] == [Ending.FAILED] * 2
    error = load_error(outcomes[0].payload)
    assert word in f"{type(error).__name__}: {error}"
    assert slot.run(functions.double, [1], number=1)[0][0].ending is Ending.SUCCEEDED


def test_an_item_that_the_worker_cannot_read_fails_alone(slot):
    class Local:
        def __reduce__(self):
            return (functions.fail, (1,))

    outcomes, _ = slot.run(functions.double, [1, Local(), 3])
    endings = [outcome.ending for outcome in outcomes]
    assert endings == [Ending.SUCCEEDED, Ending.FAILED, Ending.SUCCEEDED]


def test_a_function_that_the_worker_cannot_read_fails_each_item(slot):
    slot.supervisor.submit(
        Work(
            work_id=1,
            items=(0,),
            payloads=(dump((1,), "x"),),
            function=3,
            function_payload=b"no pickle",
        )
    )
    outcome = slot.next(SlotOutcomes).outcomes[0]
    assert outcome.ending is Ending.FAILED
    assert isinstance(load_error(outcome.payload), pickle.UnpicklingError)


def test_a_process_that_vanishes_is_reported_with_its_status_and_replaced(slot):
    outcomes, death = slot.run(functions.vanish, [0, 1])
    assert outcomes == []
    assert isinstance(death, SlotDied)
    assert death.unfinished == (0, 1)
    assert "exited with status 0" in death.reason
    again, _ = slot.run(functions.double, [4], number=1)
    assert load_result(again[0].payload) == 8


def test_items_reported_before_the_death_are_not_unfinished(slot, tmp_path):
    def first_slow_then_gone(number: int) -> int:
        functions.slowly(number)
        return functions.vanish(number) if number == 2 else number

    outcomes, death = slot.run(first_slow_then_gone, [0, 1, 2, 3])
    assert [load_result(outcome.payload) for outcome in outcomes] == [0, 1]
    assert death.unfinished == (2, 3)


def test_more_functions_than_a_worker_keeps(slot):
    """Both sides forget the same function, so a forgotten one is sent again."""
    for number in [*range(12), 0, 5, 11]:
        outcomes, _ = slot.run(lambda value, number=number: value + number, [100], number=number)
        assert load_result(outcomes[0].payload) == 100 + number


def test_the_initializer_runs_once_before_the_first_item():
    initializer = dump((functions.load_model, ("llama",)), "init")
    slot = Slot(SlotSetup(import_path=tuple(sys.path), initializer=initializer))
    slot.next(SlotReady)
    for number in (0, 1):
        outcomes, _ = slot.run(functions.loaded, [1], number=number)
        assert load_result(outcomes[0].payload) == ["llama"]
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_an_initializer_that_fails_gives_the_slot_up_with_its_traceback():
    slot = Slot(
        SlotSetup(import_path=tuple(sys.path), initializer=dump((functions.blow_up, ()), "i"))
    )
    failed = slot.next(SlotFailed)
    assert "no model here" in failed.reason
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_an_initializer_that_kills_its_process_gives_the_slot_up():
    slot = Slot(
        SlotSetup(import_path=tuple(sys.path), initializer=dump((functions.vanish, (3,)), "i"))
    )
    failed = slot.next(SlotFailed)
    assert "exited with status 3" in failed.reason
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_stopping_ends_a_process_that_does_not_end_by_itself(slot, tmp_path):
    slot.supervisor.submit(
        Work(
            work_id=1,
            items=(0,),
            payloads=(dump((str(tmp_path),), "x"),),
            function=0,
            function_payload=dump(functions.touch_and_wait, "f"),
        )
    )
    while not (running := list(tmp_path.iterdir())):
        os.sched_yield()
    slot.supervisor.stop(kill=False, timeout_seconds=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(running[0].name), 0)


def test_a_command_reports_status_and_output():
    slot = Slot(commands=True)
    slot.next(SlotReady)
    slot.supervisor.submit(Work(work_id=1, items=(3,), command="echo out; echo err >&2; exit 4"))
    outcome = slot.next(SlotOutcomes).outcomes[0]
    assert (outcome.item, outcome.ending, outcome.exit_status) == (3, Ending.FAILED, 4)
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")
    assert outcome.reason == "the command exited with status 4"
    assert isinstance(slot.next(SlotIdle), SlotIdle)
    slot.supervisor.submit(Work(work_id=2, items=(4,), command="kill -9 $$"))
    assert "killed by SIGKILL" in slot.next(SlotOutcomes).outcomes[0].reason
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_a_command_with_a_zero_byte_fails_as_an_item():
    slot = Slot(commands=True)
    slot.next(SlotReady)
    slot.supervisor.submit(Work(work_id=1, items=(0,), command="echo \0"))
    outcome = slot.next(SlotOutcomes).outcomes[0]
    assert outcome.ending is Ending.FAILED
    assert "cannot be started" in outcome.reason
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_an_interpreter_that_cannot_start_gives_the_slot_up():
    slot = Slot(python="/no/such/python")
    assert "no worker starts" in slot.next(SlotFailed).reason
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_a_remote_error_without_a_class_here_keeps_its_text():
    error = load_error(pickle.dumps((b"no pickle", "Weird: text", "Traceback ...")))
    assert isinstance(error, ExecutionError)
    assert str(error) == "Weird: text"


def test_a_command_that_leaves_something_in_the_background_ends_with_its_shell():
    """As in GNU parallel: what runs on holds up nobody."""
    slot = Slot(commands=True)
    slot.next(SlotReady)
    slot.supervisor.submit(Work(work_id=1, items=(0,), command="sleep 600 & echo $!"))
    outcome = slot.next(SlotOutcomes).outcomes[0]
    assert outcome.ending is Ending.SUCCEEDED
    os.kill(int(outcome.stdout), 9)
    slot.supervisor.stop(kill=False, timeout_seconds=WAIT_SECONDS)


def test_a_worker_that_speaks_nonsense_is_replaced(slot):
    """The border to a child holds: its item ends as a death, and the slot goes on."""
    outcomes, death = slot.run(functions.speak_nonsense, [0])
    assert outcomes == []
    assert isinstance(death, SlotDied)
    again, _ = slot.run(functions.double, [4], number=1)
    assert load_result(again[0].payload) == 8


def test_a_worker_ends_with_its_parent(tmp_path):
    """kill -9 of the caller: its workers do not go on with work that nobody will hear of."""
    import subprocess

    code = (
        "import os, queue, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import functions\n"
        "from exo.gpu.execution.payloads import dump\n"
        "from exo.gpu.execution.supervisor import RunnerSupervisor\n"
        "from exo.gpu.vocabulary.job import SlotSetup, Work\n"
        "setup = SlotSetup(import_path=tuple(sys.path))\n"
        "slot = RunnerSupervisor(0, environ=dict(os.environ), keep_open=(), setup=setup, sink=print)\n"
        "slot.submit(Work(work_id=1, items=(0,), payloads=(dump((sys.argv[1],), 'x'),), function=0,\n"
        "    function_payload=dump(functions.touch_and_wait, 'f')))\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE)
    while not (running := list(tmp_path.iterdir())):
        os.sched_yield()
    parent.kill()
    parent.wait()
    parent.stdin.close()
    worker = int(running[0].name)
    while True:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        os.sched_yield()
