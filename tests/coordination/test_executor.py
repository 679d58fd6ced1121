"""The executor: every item's result once, in order, on the devices that the rules allow."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import os
import signal
import threading
import weakref
from collections import Counter
from pathlib import Path

import functions
import psutil
import pytest
from boxes import GIB, device, host

import exo.gpu as gpu
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.coordination.map_call import map_items
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import (
    BackendError,
    ExecutionError,
    ExecutorClosed,
    InvalidValue,
    NeverAvailable,
    NotNow,
    NotTransferable,
    WorkerDied,
)
from exo.gpu.vocabulary.job import Ending

WAIT_SECONDS = 60


def live_leases():
    with LocalNode() as node:
        return [lease for state in node.snapshot().devices for lease in state.leases]


def test_map_returns_every_result_in_order_and_leaves_no_lease(two_fakes):
    assert map_items(functions.double, range(1000)) == [2 * n for n in range(1000)]
    assert live_leases() == []


def test_a_worker_sees_the_device_it_was_given_and_no_other_vendor(two_fakes):
    with GPUExecutor() as executor:
        executor.start(WAIT_SECONDS)
        seen = list(executor.map(functions.where, range(400), chunksize=1))
    for _, environ in seen:
        mine = gpu.current_device(environ)
        assert environ["EXO_GPU_FAKE_VISIBLE"] == mine.hardware_id
        assert mine.device_id in {"cuda:0", "cuda:1"}
    assert len({pid for pid, _ in seen}) == 2


def test_it_is_a_standard_executor(two_fakes):
    with GPUExecutor() as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        futures = [executor.submit(functions.double, number) for number in range(20)]
        done, waiting = concurrent.futures.wait(futures, timeout=WAIT_SECONDS)
        assert not waiting
        assert sorted(future.result() for future in done) == [2 * n for n in range(20)]
        assert executor.submit(pow, 2, exp=5).result(WAIT_SECONDS) == 32
        assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]
        assert list(executor.map(functions.double, [])) == []


def test_a_future_knows_where_it_was_tried(two_fakes):
    with GPUExecutor() as executor:
        future = executor.submit(functions.double, 1)
        assert future.device_id is None or future.done()
        assert future.result(WAIT_SECONDS) == 2
    assert future.device_id in {"cuda:0", "cuda:1"}
    (attempt,) = future.attempts
    assert attempt.ending is Ending.SUCCEEDED
    assert attempt.seconds >= 0


def test_an_exception_comes_back_as_itself_with_the_remote_traceback(two_fakes):
    with GPUExecutor() as executor:
        with pytest.raises(ValueError, match="no 7") as caught:
            executor.submit(functions.fail, 7).result(WAIT_SECONDS)
        assert "functions.py" in str(caught.value.__cause__)
        assert executor.submit(functions.double, 1).result(WAIT_SECONDS) == 2


def test_killed_workers_lose_nothing(two_fakes):
    """kill -9 of workers in the middle of a map of 200 items: 200 results, in order, each once."""
    with GPUExecutor(max_attempts=50) as executor:
        futures = [executor.submit(functions.slowly_where, number) for number in range(200)]
        results = []
        for future in futures:
            results.append(future.result(WAIT_SECONDS))
            if len(results) in {20, 60, 100}:
                os.kill(results[-1][1], signal.SIGKILL)
    assert [number for number, _ in results] == list(range(200))
    assert len({pid for _, pid in results}) >= 4
    endings = Counter(attempt.ending for future in futures for attempt in future.attempts)
    assert endings[Ending.SUCCEEDED] == 200
    assert endings.keys() <= {Ending.SUCCEEDED, Ending.DIED}
    assert live_leases() == []


def test_an_item_that_always_kills_its_worker_is_given_up_alone(two_fakes):
    with GPUExecutor(max_attempts=3) as executor:
        futures = [
            executor.submit(functions.vanish, 3)
            if number == 5
            else executor.submit(functions.double, number)
            for number in range(12)
        ]
        with pytest.raises(WorkerDied, match=r"died 3 times .*exited with status 3"):
            futures[5].result(WAIT_SECONDS)
        others = [
            future.result(WAIT_SECONDS) for number, future in enumerate(futures) if number != 5
        ]
    assert others == [2 * number for number in range(12) if number != 5]
    assert [attempt.ending for attempt in futures[5].attempts] == [Ending.DIED] * 3


def test_an_item_whose_worker_died_once_succeeds_elsewhere(two_fakes, tmp_path):
    with GPUExecutor() as executor:
        future = executor.submit(functions.vanish_once, str(tmp_path / "mark"))
        assert future.result(WAIT_SECONDS) == "done mark"
    assert [attempt.ending for attempt in future.attempts] == [Ending.DIED, Ending.SUCCEEDED]
    assert "SIGKILL" in future.attempts[0].reason


def test_what_cannot_be_pickled_fails_by_name_and_harms_nothing_else(two_fakes):
    with GPUExecutor() as executor:
        with pytest.raises(NotTransferable, match="cannot be sent"):
            executor.submit(functions.double, threading.Lock()).result(WAIT_SECONDS)
        lock = threading.Lock()
        with pytest.raises(NotTransferable, match="lambda"):
            executor.map(lambda _: lock, [1])
        with pytest.raises(NotTransferable, match="generator"):
            executor.submit(functions.make_unpicklable, 1).result(WAIT_SECONDS)
        assert executor.submit(functions.double, 2).result(WAIT_SECONDS) == 4


def test_a_default_map_keeps_to_one_runtime_and_says_what_it_left_out(use_box, caplog):
    """A program is built for one runtime: an AMD card never gets what was built for CUDA."""
    use_box(device("cuda:0", "NVIDIA", "cuda"), device("rocm:0", "AMD", "rocm"), host())
    with caplog.at_level(logging.WARNING, "exo.gpu"), GPUExecutor() as executor:
        assert [used.runtime for used in executor.devices] == ["cuda"]
        assert {refusal.device_id for refusal in executor.left_out} == {"rocm:0", "cpu:0"}
        assert "rocm:0" in caplog.text
        futures = [executor.submit(functions.double, number) for number in range(10)]
        assert {future.result(WAIT_SECONDS) and future.device_id for future in futures[1:]} == {
            "cuda:0"
        }
    with GPUExecutor(runtime="rocm") as executor:
        assert [used.device_id for used in executor.devices] == ["rocm:0"]
    with GPUExecutor(all_devices=True) as executor:
        assert {used.device_id for used in executor.devices} == {"cuda:0", "rocm:0", "cpu:0"}
        assert len(executor.lanes) == 4
        assert executor.left_out == ()


def test_a_device_gets_as_many_workers_as_its_memory_holds(use_box):
    use_box(
        device("cuda:0", "NVIDIA", "cuda"), device("cuda:1", "NVIDIA", "cuda", memory_bytes=2 * GIB)
    )
    with GPUExecutor(memory="3GiB", slots=4) as executor:
        assert [used.device_id for _, used in executor.lanes] == ["cuda:0", "cuda:0"]
        with pytest.raises(NotNow, match="cuda:0"):
            GPUExecutor(memory="3GiB")
    with pytest.raises(NeverAvailable, match=r"cuda:0.*8\.0 GiB"):
        GPUExecutor(memory="9GiB")


def test_the_initializer_runs_in_every_worker_before_start_returns(two_fakes):
    with GPUExecutor(initializer=functions.load_model, initargs=("llama",)) as executor:
        executor.start(WAIT_SECONDS)
        assert list(executor.map(functions.loaded, range(4))) == [["llama"]] * 4


def test_an_initializer_that_fails_fails_the_items_with_its_reason(two_fakes):
    with GPUExecutor(initializer=functions.blow_up) as executor:
        future = executor.submit(functions.double, 1)
        with pytest.raises(WorkerDied, match="no model here"):
            future.result(WAIT_SECONDS)
        with pytest.raises(ExecutionError, match="no model here"):
            executor.start(WAIT_SECONDS)
        with pytest.raises(WorkerDied, match="no model here"):
            executor.submit(functions.double, 1).result(WAIT_SECONDS)
    assert live_leases() == []


def test_stream_yields_each_as_it_ends_with_its_device(two_fakes):
    with GPUExecutor() as executor:
        seen = {done.item_index: done for done in executor.stream(functions.double, range(30))}
    assert {index: done.result for index, done in seen.items()} == {n: 2 * n for n in range(30)}
    assert {done.device_id for done in seen.values()} <= {"cuda:0", "cuda:1"}
    assert all(done.ended_at >= done.started_at for done in seen.values())


def test_a_distribution_runs_where_it_was_assigned(two_fakes):
    distribution = gpu.WorkloadDistributor().distribute_by_capacity(
        {"cuda:0": 1, "cuda:1": 3}, range(16)
    )
    with GPUExecutor() as executor:
        done = list(executor.map_distribution(functions.double, distribution))
        with pytest.raises(InvalidValue, match="rocm:9"):
            executor.map_distribution(functions.double, {"rocm:9": [1]})
    assert Counter(one.device_id for one in done) == {"cuda:0": 4, "cuda:1": 12}
    in_order = [item for items in distribution.values() for item in items]
    assert all(one.result == 2 * in_order[one.item_index] for one in done)


def test_a_failing_item_of_a_stream_raises_and_the_rest_is_cancelled(two_fakes):
    with GPUExecutor() as executor, pytest.raises(ValueError, match=r"no \d"):
        list(executor.stream(functions.fail, range(50)))


def test_cancelled_before_it_began_is_never_run(two_fakes, tmp_path):
    with GPUExecutor() as executor:
        futures = [executor.submit(functions.slowly, number) for number in range(400)]
        assert futures[-1].cancel()
        executor.shutdown(cancel_futures=True)
    states = Counter(future.cancelled() for future in futures)
    assert states[True] >= 1
    assert all(future.done() for future in futures)
    assert all(
        future.result() == number for number, future in enumerate(futures) if not future.cancelled()
    )


def test_after_shutdown_it_takes_no_more(two_fakes):
    executor = GPUExecutor()
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(ExecutorClosed, match="shut down"):
        executor.submit(functions.double, 1)
    with pytest.raises(ExecutorClosed):
        executor.map(functions.double, [1])


def test_an_interrupt_ends_the_workers_at_once(two_fakes, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    with pytest.raises(KeyboardInterrupt), GPUExecutor() as executor:
        future = executor.submit(functions.touch_and_wait, str(marks))
        while not (running := list(marks.iterdir())):
            os.sched_yield()
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(int(running[0].name), 0)
    with pytest.raises(WorkerDied):
        future.result(WAIT_SECONDS)
    assert live_leases() == []


def test_an_abandoned_map_cancels_what_has_not_begun(two_fakes):
    with GPUExecutor() as executor:
        results = executor.map(functions.slowly, range(2000))
        assert next(results) == 0
        results.close()
    assert live_leases() == []


def test_a_map_whose_last_worker_died_holds_no_items(two_fakes):
    """Rule: what is through is let go of while the executor lives on, however it ended."""
    item = functions.Thing()
    held = weakref.ref(item)
    with GPUExecutor(max_attempts=1) as executor:
        with pytest.raises(WorkerDied):
            list(executor.map(functions.exit_quietly, [item]))
        assert executor.submit(functions.double, 1).result(WAIT_SECONDS) == 2
        del item
        gc.collect()
        assert held() is None


def test_map_honours_its_timeout(two_fakes, tmp_path):
    with pytest.raises(SystemExit), GPUExecutor() as executor:
        with pytest.raises(TimeoutError):
            list(executor.map(functions.touch_and_wait, [str(tmp_path)], timeout=0.2))
        raise SystemExit


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"memory": "banana"}, "memory"),
        ({"memory": -1}, "memory"),
        ({"slots": 0}, "slots"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
def test_bad_input_is_named_and_nothing_is_started(two_fakes, options, field):
    with pytest.raises(InvalidValue, match=field):
        GPUExecutor(**options)
    assert live_leases() == []


def test_a_bad_chunksize_is_named(two_fakes):
    with GPUExecutor() as executor, pytest.raises(InvalidValue, match="chunksize"):
        executor.map(functions.double, [1], chunksize=0)


def test_the_host_has_a_slot_for_each_core(use_box):
    use_box(host(slots=2))
    with GPUExecutor() as executor:
        assert [used.device_id for _, used in executor.lanes] == ["cpu:0", "cpu:0"]


def test_a_script_that_forgets_to_shut_down_still_gets_its_results(two_fakes, tmp_path):
    """As with every standard executor, what was submitted is done before the program ends."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "import exo.gpu as gpu\n"
        "def note(name):\n"
        "    Path(name).write_text(gpu.current_device().device_id)\n"
        "executor = gpu.GPUExecutor()\n"
        f"executor.submit(note, {str(tmp_path / 'noted')!r})\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=WAIT_SECONDS)
    assert Path(tmp_path / "noted").read_text() in {"cuda:0", "cuda:1"}


def test_a_forgotten_executor_does_its_work_and_lets_go(two_fakes):
    """Nobody holds it any more: its items end, then its workers and leases."""
    import gc

    executor = GPUExecutor()
    futures = [executor.submit(functions.double, number) for number in range(5)]
    threads = [thread for thread in threading.enumerate() if thread.name == "exo-gpu-dispatch"]
    del executor
    gc.collect()
    assert [future.result(WAIT_SECONDS) for future in futures] == [0, 2, 4, 6, 8]
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert live_leases() == []


def test_a_slot_that_cannot_be_pinned_leaves_no_lease_behind(two_fakes):
    class Unpinnable(LocalNode):
        def open_slot(self, lease_id, setup, sink):
            raise BackendError("hidden by CUDA_VISIBLE_DEVICES")

    with Unpinnable() as node, pytest.raises(BackendError, match="hidden"):
        try:
            GPUExecutor(node=node)
        finally:
            assert all(not state.leases for state in node.snapshot().devices)
    with pytest.raises(BackendError, match="hidden"):
        GPUExecutor(node=Unpinnable())


def test_a_broken_node_ends_every_future_with_a_reason(two_fakes, monkeypatch):
    """Whatever breaks below, no caller waits for ever."""
    broken = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    class Broken(LocalNode):
        def submit(self, slot_id, work):
            raise OSError("the road is gone")

    with Broken() as node:
        executor = GPUExecutor(node=node)
        future = executor.submit(functions.double, 1)
        with pytest.raises(WorkerDied, match="the road is gone"):
            future.result(WAIT_SECONDS)
        executor.shutdown()
        assert "the road is gone" in str(broken[0].exc_value)
        with pytest.raises(ExecutorClosed):
            executor._dispatcher.add([])


def test_a_slot_that_cannot_come_back_costs_nobody_else_anything(two_fakes, tmp_path):
    """A worker dies and its initializer now fails: the other device does all items."""
    mark = tmp_path / "marks"
    mark.mkdir()
    with GPUExecutor(initializer=functions.fail_the_second_time, initargs=(str(mark),)) as executor:
        executor.start(WAIT_SECONDS)
        pids = {pid for pid, _ in executor.map(functions.where, range(200), chunksize=1)}
        os.kill(next(iter(pids)), signal.SIGKILL)
        futures = [executor.submit(functions.slowly, number) for number in range(60)]
        assert [future.result(WAIT_SECONDS) for future in futures] == list(range(60))
    assert live_leases() == []


def test_as_many_slots_as_were_asked_for(use_box):
    use_box(device("cuda:0", "NVIDIA", "cuda"), host())
    with GPUExecutor(slots=3) as executor:
        assert [used.device_id for _, used in executor.lanes] == ["cuda:0"] * 3
        with pytest.raises(NotNow, match="3 of 1 slots taken"):
            GPUExecutor()


def test_an_item_that_waits_for_another_of_its_chunk_gets_its_result(two_fakes):
    """What is done is told within moments, also while the next item of the chunk runs."""
    with GPUExecutor(devices="cuda:0") as executor:
        list(executor.map(functions.double, range(300)))  # so that chunks are long
        quick = [executor.submit(functions.double, number) for number in range(20)]
        slow = executor.submit(functions.sleep_for, 3.0)
        assert [future.result(WAIT_SECONDS) for future in quick] == [2 * n for n in range(20)]
        assert not slow.done()
        slow.result(WAIT_SECONDS)


def test_a_forked_child_of_an_item_does_not_hide_the_death_of_its_worker(two_fakes, tmp_path):
    with GPUExecutor(max_attempts=1) as executor:
        future = executor.submit(functions.fork_and_die, str(tmp_path / "child"))
        with pytest.raises(WorkerDied, match="SIGKILL"):
            future.result(WAIT_SECONDS)
    child = int((tmp_path / "child").read_text())
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        os.sched_yield()


def test_an_idle_worker_that_died_costs_no_attempt(two_fakes):
    with GPUExecutor(devices="cuda:0", max_attempts=1) as executor:
        pid, _ = executor.submit(functions.where, 0).result(WAIT_SECONDS)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert executor.submit(functions.double, 4).result(WAIT_SECONDS) == 8
