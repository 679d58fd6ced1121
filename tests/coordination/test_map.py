"""Maps: every item once and in order, whatever the source, the reader and the workers do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
import time
from collections import Counter
from pathlib import Path

import functions
import numpy as np
import pytest

import exo.gpu as gpu
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import ExecutorClosed, InvalidValue, NotTransferable
from exo.gpu.vocabulary.job import SlotRecalled

WAIT_SECONDS = 60


def live_leases():
    with LocalNode() as node:
        return [lease for state in node.snapshot().devices for lease in state.leases]


@pytest.fixture
def executor(two_fakes):
    with GPUExecutor() as executor:
        executor.start(WAIT_SECONDS)
        yield executor
    assert live_leases() == []


@pytest.mark.parametrize("source", [list, tuple, iter, set, lambda items: (item for item in items)])
def test_every_kind_of_source_gives_every_result_in_order(executor, source):
    items = source(range(5000))
    expected = [2 * item for item in (items if isinstance(items, set) else range(5000))]
    assert list(executor.map(functions.double, items)) == expected


def test_several_sources_end_with_the_shortest(executor):
    assert list(executor.map(pow, [2, 3, 4], range(2))) == [1, 3]
    assert list(executor.map(pow, iter([2, 3]), itertools.count(1))) == [2, 9]
    assert list(executor.map(pow, [], itertools.count())) == []
    with pytest.raises(InvalidValue, match="iterables"):
        executor.map(pow)


def test_a_source_without_end_is_read_only_a_little_ahead(executor):
    pulled = []

    def count():
        for number in itertools.count():
            pulled.append(threading.current_thread())
            yield number

    results = executor.map(functions.slowly, count())
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert len(pulled) < 100
    assert set(pulled) == {threading.current_thread()}


@pytest.mark.parametrize("buffersize", [1, 2, 7])
def test_buffersize_bounds_what_is_taken_and_not_read(executor, buffersize):
    taken = itertools.count()
    newest = -1

    def source():
        nonlocal newest
        for newest in taken:
            if newest == 300:
                return
            yield newest

    for read, result in enumerate(executor.map(functions.double, source(), buffersize=buffersize)):
        assert result == 2 * read
        assert newest <= read + buffersize


def test_buffersize_holds_for_a_list_too(executor):
    results = executor.map(functions.double, list(range(500)), buffersize=3)
    assert list(results) == [2 * number for number in range(500)]


def test_a_source_that_raises_ends_with_its_error_after_the_results_before_it(executor):
    def source():
        yield from range(30)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for result in executor.map(functions.double, source()):
            seen.append(result)  # noqa: PERF402 - what came before the error counts
    assert seen == [2 * number for number in range(30)]


def test_an_item_that_cannot_be_sent_fails_alone(executor):
    items = [1, 2, threading.Lock(), 4]
    results = executor.map(functions.double, items)
    assert [next(results), next(results)] == [2, 4]
    with pytest.raises(NotTransferable, match="an item cannot be sent"):
        next(results)
    done = {}
    with pytest.raises(NotTransferable):
        for one in executor.stream(functions.double, items):
            done[one.item_index] = one.result
    assert done.items() <= {0: 2, 1: 4, 3: 8}.items()


def test_a_result_that_cannot_be_read_fails_alone(executor):
    results = executor.map(functions.make_unreadable, [1, 2, 3])
    assert next(results) == [1]
    with pytest.raises(NotTransferable, match="cannot be read here"):
        next(results)


def test_what_an_item_raises_comes_in_its_place(executor):
    results = executor.map(functions.fail_at_seven, range(20))
    assert list(itertools.islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="no 7"):
        next(results)
    assert list(results) == []


def test_unread_maps_are_done_by_the_end(two_fakes, tmp_path):
    """As with every standard executor; what is read in part is cut off."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with GPUExecutor() as executor:
        executor.map(functions.touch, [str(tmp_path / "a" / str(n)) for n in range(50)])
        executor.map(functions.touch, (str(tmp_path / "b" / str(n)) for n in range(3000)))
        begun = executor.map(functions.double, itertools.count())
        assert next(begun) == 0
    assert len(list((tmp_path / "a").iterdir())) == 50
    assert len(list((tmp_path / "b").iterdir())) == 3000
    with pytest.raises((ExecutorClosed, Exception), match="shut down"):
        for _ in begun:
            pass


def test_shutdown_that_cancels_ends_maps_that_wait(two_fakes):
    executor = GPUExecutor()
    results = executor.map(functions.slowly, range(5000))
    assert next(results) == 0
    executor.shutdown(cancel_futures=True)
    with pytest.raises(BaseException, match="shut down"):
        list(results)
    assert live_leases() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_map_can_be_read_in_a_coroutine_while_others_run(executor, backend):
    import anyio

    async def main():
        turns = 0

        async def turn():
            nonlocal turns
            while True:
                turns += 1
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as group:
            group.start_soon(turn)
            seen = [result async for result in executor.map(functions.slowly, range(40))]
            streamed = [
                one.result async for one in executor.stream(functions.double, iter(range(40)))
            ]
            group.cancel_scope.cancel()
        assert seen == list(range(40))
        assert sorted(streamed) == [2 * number for number in range(40)]
        assert turns > 20

    anyio.run(main, backend=backend)


def test_a_coroutine_that_is_cancelled_cancels_its_map(executor):
    import anyio

    async def main():
        with anyio.move_on_after(0.2):
            async for _ in executor.map(functions.slowly, itertools.count()):
                pass
        return [result async for result in executor.map(functions.double, [1, 2])]

    assert anyio.run(main) == [2, 4]


def test_an_event_loop_takes_it_for_a_standard_executor(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(executor, functions.double, number) for number in range(20))
        )

    assert asyncio.run(main()) == [2 * number for number in range(20)]


def test_futures_come_in_the_order_in_which_they_end(executor):
    futures = {executor.submit(functions.double, number): number for number in range(20)}
    seen = {futures[one]: one.result() for one in executor.as_completed(futures, WAIT_SECONDS)}
    assert seen == {number: 2 * number for number in range(20)}


def test_cancel_ends_a_function_that_runs_and_spares_the_others(executor, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    future = executor.submit(functions.touch_and_wait, str(marks))
    while not list(marks.iterdir()):
        os.sched_yield()
    assert future.running()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(WAIT_SECONDS)
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception(WAIT_SECONDS)
    done = executor.submit(functions.double, 3)
    assert done.result(WAIT_SECONDS) == 6
    assert not done.cancel()
    assert not done.cancelled()
    assert executor.submit(functions.double, 4).result(WAIT_SECONDS) == 8
    assert list(executor.map(functions.double, range(100))) == [2 * n for n in range(100)]


def test_what_waits_behind_a_long_item_is_taken_over_by_an_idle_worker(two_fakes, tmp_path):
    """Short items first, so that chunks are long; then one that does not end before the rest."""
    recalled = []

    class Listening(LocalNode):
        def open_slot(self, lease_id, setup, sink, *more):
            def hear(event):
                if isinstance(event, SlotRecalled):
                    recalled.extend(event.items)
                sink(event)

            return super().open_slot(lease_id, setup, hear, *more)

    with Listening() as node, GPUExecutor(node=node) as executor:
        executor.start(WAIT_SECONDS)
        go = tmp_path / "go"
        count = 4000
        items = [(str(go), number == 3000) for number in range(count)]
        done = Counter()
        for one in executor.stream(functions.wait_for_file_or_nothing, items):
            done[one.item_index] += 1
            if len(done) == count - 1:
                assert 3000 not in done
                go.touch()
    assert done == Counter(range(count))
    assert recalled


def test_killed_workers_lose_nothing_of_a_map(two_fakes):
    """kill -9 in the middle of spans: every item once, in order."""
    with GPUExecutor(max_attempts=50) as executor:
        victims = set()
        numbers = []
        for number, pid in executor.map(functions.quickly_where, range(3000)):
            numbers.append(number)
            if len(numbers) in {300, 1200, 2400} and pid not in victims:
                victims.add(pid)
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
    assert numbers == list(range(3000))
    assert live_leases() == []


def test_arrays_go_in_and_out_and_the_worker_may_write_them(executor):
    arrays = [np.full(200_000, number, dtype=float) for number in range(8)]
    for number, result in enumerate(executor.map(functions.add_in_place, arrays)):
        assert (result == number + 1).all()
        result[0] = -1  # nobody else has it
    assert all((array == number).all() for number, array in enumerate(arrays))


def test_a_worker_that_reuses_its_array_does_not_change_results_that_were_returned(executor):
    results = list(executor.map(functions.same_array, range(30), chunksize=30))
    assert [result[0] for result in results] == list(range(30))


def test_results_that_were_changed_later_are_as_they_were_returned(executor):
    assert list(executor.map(functions.same_list, range(5), chunksize=5)) == [
        list(range(number + 1)) for number in range(5)
    ]


def test_the_device_inside_has_its_names_in_the_frameworks(two_fakes):
    with GPUExecutor() as executor:
        (names,) = set(executor.map(functions.device_names, range(4)))
    assert names == ("cuda:0", "cuda:0")
    assert gpu.current_device() is None


def test_a_timeout_is_for_all_results_and_counts_from_the_call(executor, tmp_path):
    results = executor.map(functions.slowly, itertools.count(), timeout=0.3)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        for _ in results:
            assert time.monotonic() < began + WAIT_SECONDS


def test_a_script_without_a_guard_maps_its_own_functions(two_fakes, tmp_path):
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "import exo.gpu as gpu\n"
        "import numpy as np\n"
        "scale = np.full(100_000, 3.0)\n"
        "def tripled(number):\n"
        "    return float((scale * number)[0])\n"
        "with gpu.GPUExecutor() as executor:\n"
        "    print(list(executor.map(tripled, range(4))))\n"
    )
    done = subprocess.run(
        [sys.executable, script], check=True, timeout=WAIT_SECONDS, capture_output=True, text=True
    )
    assert done.stdout == "[0.0, 3.0, 6.0, 9.0]\n"
    assert Path(script).exists()
