"""What the executor does about attempts that fail: more memory, another device, or the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections import Counter

import awkward
import functions
import pytest
from boxes import GIB, device, host

from exo.gpu.coordination.dispatcher import Dispatcher
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.coordination.items import Job
from exo.gpu.coordination.wishes import request_of
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.retry import RetryPolicy
from exo.gpu.vocabulary.errors import InvalidValue, TimedOut, WorkerDied
from exo.gpu.vocabulary.job import Cause, Ending

WAIT_SECONDS = 60


@pytest.fixture
def small_and_large(use_box):
    return use_box(
        device("cuda:0", "NVIDIA", "cuda", memory_bytes=8 * GIB),
        device("cuda:1", "NVIDIA", "cuda", memory_bytes=24 * GIB),
        host(),
    )


def live_leases():
    with LocalNode() as node:
        return [lease for state in node.snapshot().devices for lease in state.leases]


def test_an_item_out_of_memory_gets_more_on_a_device_that_has_it(small_and_large):
    """4 GiB, 8, 16: the last only on the large card, beside a hundred items that need little."""
    with GPUExecutor(memory="4GiB", max_attempts=1) as executor:
        hungry = executor.submit(awkward.want_memory, 16 * GIB)
        others = list(executor.map(functions.double, range(100)))
        assert hungry.result(WAIT_SECONDS) == "cuda:1"
        assert list(executor.map(functions.double, range(100))) == others
    assert [one.memory_bytes for one in hungry.attempts] == [4 * GIB, 8 * GIB, 16 * GIB]
    causes = [one.cause for one in hungry.attempts]
    assert causes == [Cause.OUT_OF_DEVICE_MEMORY, Cause.OUT_OF_DEVICE_MEMORY, None]
    assert "CUDA out of memory" in hungry.attempts[0].reason
    assert live_leases() == []


def test_the_slots_that_made_room_come_back(small_and_large):
    """Both cards are full of small leases; one big item takes a card, and gives it back."""
    with GPUExecutor(memory="8GiB", slots=3) as executor:
        before = len(executor.lanes)
        hungry = [executor.submit(awkward.want_memory, 20 * GIB) for _ in range(2)]
        for future in hungry:
            assert future.result(WAIT_SECONDS) == "cuda:1"
        places = list(executor.map(awkward.slow_where, range(60), chunksize=1))
        assert before == 4
        assert set(places) == {"cuda:0", "cuda:1"}
    assert live_leases() == []


def test_memory_that_no_device_has_ends_the_item_with_its_own_exception(small_and_large):
    with GPUExecutor(memory="4GiB") as executor:
        future = executor.submit(awkward.want_memory, 100 * GIB)
        error = future.exception(WAIT_SECONDS)
        assert type(error).__name__ == "OutOfMemoryError"
        notes = " ".join(error.__notes__)
        assert "no device that it may use holds more" in notes or "ran out of memory" in notes
        assert executor.submit(functions.double, 2).result(WAIT_SECONDS) == 4
    assert live_leases() == []


def test_without_growing_the_first_time_is_the_last(small_and_large):
    with GPUExecutor(memory="4GiB", grow=False) as executor:
        future = executor.submit(awkward.want_memory, 8 * GIB)
        assert type(future.exception(WAIT_SECONDS)).__name__ == "OutOfMemoryError"
    assert len(future.attempts) == 1


def test_an_item_whose_device_is_lost_goes_elsewhere_and_nothing_else_goes_there(
    two_fakes, tmp_path
):
    lost = []
    with GPUExecutor(on_device_lost=lambda *told: lost.append(told)) as executor:
        met = tmp_path / "met"
        futures = [executor.submit(awkward.lose_device, "cuda:0", met) for _ in range(40)]
        places = {future.result(WAIT_SECONDS) for future in futures}
    assert places == {"cuda:1"}
    assert [(device.device_id, "ECC" in reason) for device, reason in lost] == [("cuda:0", True)]
    failed = [one for future in futures for one in future.attempts if one.device_id == "cuda:0"]
    assert len(failed) == 1
    assert failed[0].cause is Cause.DEVICE_LOST
    assert live_leases() == []


def test_a_lost_device_that_is_the_only_one_ends_what_waits(use_box, tmp_path):
    use_box(device("cuda:0", "NVIDIA", "cuda"))
    with GPUExecutor() as executor:
        arguments = ("cuda:0", tmp_path / "met")
        futures = [executor.submit(awkward.lose_device, *arguments) for _ in range(5)]
        errors = [future.exception(WAIT_SECONDS) for future in futures]
    assert isinstance(errors[0], RuntimeError)
    assert all(isinstance(error, (RuntimeError, WorkerDied)) for error in errors)
    assert live_leases() == []


def test_a_failure_is_tried_again_only_where_that_was_asked(two_fakes, tmp_path):
    for number, options in enumerate([{}, {"retries": 2, "retry_on": [ValueError, 3]}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with GPUExecutor(**options) as executor:
            future = executor.submit(awkward.fail_twice, str(folder))
            assert isinstance(future.exception(WAIT_SECONDS), KeyError)
            assert len(future.attempts) == 1
    folder = tmp_path / "asked"
    folder.mkdir()
    with GPUExecutor(retries=2, retry_on=[LookupError]) as executor:
        future = executor.submit(awkward.fail_twice, str(folder))
        assert future.result(WAIT_SECONDS) == 2
    endings = [one.cause for one in future.attempts]
    assert endings == [Cause.EXCEPTION, Cause.EXCEPTION, None]
    with pytest.raises(InvalidValue, match="retry_on"):
        GPUExecutor(retry_on=[LookupError])


def test_items_past_their_deadline_end_alone(two_fakes):
    with GPUExecutor(deadline=1.0) as executor:
        quick = [executor.submit(functions.double, number) for number in range(10)]
        slow = executor.submit(functions.sleep_for, 600)
        with pytest.raises(TimedOut, match="longer than 1 s"):
            slow.result(WAIT_SECONDS)
        assert [one.result(WAIT_SECONDS) for one in quick] == [2 * number for number in range(10)]
    assert slow.attempts[-1].cause is Cause.TIMEOUT


def test_every_item_may_have_a_process_of_its_own(two_fakes):
    with GPUExecutor(fresh=True) as executor:
        seen = Counter(executor.map(awkward.pid, range(6)))
    assert len(seen) == 6


def test_what_workers_print_is_heard(two_fakes):
    heard = []
    with GPUExecutor(on_output=heard.append) as executor:
        assert executor.submit(awkward.speak, "now").result(WAIT_SECONDS) == "now"
    assert b"out now" in b"".join(one.data for one in heard)
    assert b"err now" in b"".join(one.data for one in heard if one.is_stderr)


def test_a_generator_is_read_as_it_yields(two_fakes, tmp_path):
    mark = tmp_path / "mark"
    with GPUExecutor() as executor:
        stream = executor.chunks(awkward.count_slowly, 200, str(mark))
        assert list(stream) == list(range(200))
        assert [one.ending for one in stream.attempts] == [Ending.SUCCEEDED]
        with pytest.raises(ValueError, match="no more"):
            list(executor.chunks(awkward.yield_then_fail, 3))
        with executor.chunks(awkward.count_slowly, 10**9, str(mark)) as endless:
            read = [chunk for chunk, _ in zip(endless, range(50), strict=False)]
        assert read == list(range(50))
        with pytest.raises(concurrent.futures.CancelledError):
            list(endless)
        assert executor.submit(functions.double, 1).result(WAIT_SECONDS) == 2


def test_a_stream_that_was_heard_is_not_begun_again(two_fakes):
    """Rule: no chunk comes twice; one that dies before its first chunk may go elsewhere."""
    with GPUExecutor() as executor:
        stream = executor.chunks(awkward.yield_then_die, 3)
        read = []
        with pytest.raises(WorkerDied, match="exited with status 4"):
            read.extend(stream)
        assert read == [0, 1, 2]
        assert len(stream.attempts) == 1
        silent = executor.chunks(awkward.yield_then_die, 0)
        with pytest.raises(WorkerDied, match="died 3 times"):
            list(silent)


def test_a_stream_can_be_read_by_an_asyncio_program(two_fakes, tmp_path):
    async def read(executor):
        stream = executor.chunks(awkward.count_slowly, 100, str(tmp_path / "mark"))
        return [chunk async for chunk in stream]

    with GPUExecutor() as executor:
        assert asyncio.run(read(executor)) == list(range(100))


class Ends:
    """Hears how jobs end, and that none ends twice."""

    def __init__(self) -> None:
        self.outcomes = {}
        self.all = threading.Event()

    def job(self, item, command):
        """One that runs this text whatever the slot."""
        return Job(
            item=item, begin=lambda: True, end=self.end, command=lambda _slot, _device: command
        )

    def end(self, outcome, job):
        assert job.item not in self.outcomes
        self.outcomes[job.item] = outcome
        if len(self.outcomes) == self.expected:
            self.all.set()


def test_running_and_waiting_items_can_be_cancelled(use_box, tmp_path):
    """Each ends once, as cancelled; the others are not touched."""
    use_box(device("cuda:0", "NVIDIA", "cuda"))
    ends = Ends()
    ends.expected = 3
    mark = tmp_path / "began"
    with LocalNode() as node:
        dispatcher = Dispatcher(node, request_of(), setup=None)
        commands = [f"touch {mark}; sleep 600", "sleep 600", "true"]
        dispatcher.add([ends.job(item, text) for item, text in enumerate(commands)])
        while not mark.exists():
            os.sched_yield()
        for item in (0, 1, 77):
            dispatcher.cancel(item)
        assert ends.all.wait(WAIT_SECONDS)
        dispatcher.close()
    causes = [ends.outcomes[item].cause for item in range(3)]
    assert causes == [Cause.CANCELLED, Cause.CANCELLED, None]


@pytest.mark.parametrize(
    ("command", "cause", "attempts"),
    [
        ("exit 3", Cause.EXIT_STATUS, 3),
        ("echo 'CUDA error: out of memory' >&2; exit 1", Cause.OUT_OF_DEVICE_MEMORY, 2),
        ("kill -9 $$", Cause.KILLED, 2),
    ],
)
def test_commands_are_judged_by_what_they_printed_and_how_they_ended(
    use_box, command, cause, attempts
):
    use_box(device("cuda:0", "NVIDIA", "cuda"))
    ends, told = Ends(), []
    ends.expected = 1
    with LocalNode() as node:
        dispatcher = Dispatcher(
            node,
            request_of("4GiB"),
            setup=None,
            retry=RetryPolicy(max_attempts=2, retries=2),
            on_retry=lambda job, words: told.append((job.item, words)),
        )
        dispatcher.add([ends.job(0, command)])
        assert ends.all.wait(WAIT_SECONDS)
        dispatcher.close()
    outcome = ends.outcomes[0]
    assert outcome.cause is cause
    assert outcome.reason.count("on cuda:0: ") == attempts
    if cause is Cause.OUT_OF_DEVICE_MEMORY:
        assert told == [
            (
                0,
                "on cuda:0: the command exited with status 1 (out of device memory: CUDA error: "
                "out of memory); it had 4.0 GiB and gets 8.0 GiB",
            )
        ]
