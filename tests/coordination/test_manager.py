"""The manager: any vendor's devices, nothing stale or ailing chosen, nothing lost, never in the way."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import anyio
import pytest
from anyio import lowlevel, to_thread

from exo.gpu.coordination.manager import GPUClusteringManager
from exo.gpu.scheduling.selector import explain, select
from exo.gpu.telemetry_protocol import DeviceType, GPUMetrics, Heartbeat
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import (
    DuplicateDevice,
    InvalidValue,
    ManagerClosed,
    NoSuchDevice,
    UnknownName,
)
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health
from tests.coordination.stalls import stall_seconds

GB = 10**9
STALL_SECONDS = 0.050


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def manager(clock):
    return GPUClusteringManager(clock=clock)


def device(device_id="cuda:0", memory=24, **facts):
    backend = device_id.rpartition("/")[2].partition(":")[0]
    return GPUDevice(
        device_id,
        f"Card {device_id}",
        "vendor",
        backend,
        memory_bytes=memory and memory * GB,
        **facts,
    )


def metrics(device_id="cuda:0", used=4, timestamp=1.0, percent=10.0, **readings):
    return GPUMetrics(device_id, timestamp, used * GB, 24 * GB, percent, **readings)


class TestRegistration:
    def test_it_begins_empty_and_makes_its_parts_when_first_used(self, manager):
        assert len(manager._devices) == 0
        assert manager.list_devices() == []
        assert manager._collector is None

    def test_devices_of_any_vendor_are_listed_in_order(self, manager):
        """D8."""
        for name in ("rocm:0", "cuda:0", "metal:0", "level_zero:0", "cpu:0"):
            manager.register_device(device(name))
        assert [one.device_id for one in manager.list_devices()][:2] == ["rocm:0", "cuda:0"]
        assert manager.get_device("metal:0") == device("metal:0")
        assert manager.get_device("cuda:9") is None
        assert manager.get_capabilities("rocm:0").device_type is DeviceType.ROCM
        assert manager.get_capabilities("level_zero:0").device_type is DeviceType.INTEL_XE

    def test_the_capabilities_of_a_stranger_are_refused_by_name(self, manager):
        with pytest.raises(NoSuchDevice, match=r"'cuda:0'.*none"):
            manager.get_capabilities("cuda:0")

    def test_the_same_facts_again_are_harmless_others_are_refused(self, manager):
        manager.register_device(device())
        manager.register_device(device())
        assert len(manager.list_devices()) == 1
        with pytest.raises(DuplicateDevice, match=r"'cuda:0'.*unregister it first"):
            manager.register_device(device(memory=48))

    def test_one_card_is_registered_once(self, manager):
        manager.register_device(device("cuda:0", hardware_id="GPU-1"))
        with pytest.raises(DuplicateDevice, match=r"'GPU-1'.*cuda:0 is the same hardware"):
            manager.register_device(device("vulkan:0", hardware_id="GPU-1"))
        manager.register_device(device("rig2/cuda:0", hardware_id="GPU-1", node="rig2"))

    def test_a_card_may_come_back_under_another_name(self, manager):
        manager.register_device(device("cuda:0", hardware_id="GPU-1"))
        manager.unregister_device("cuda:0")
        manager.register_device(device("cuda:1", hardware_id="GPU-1"))

    @pytest.mark.parametrize("junk", [None, "cuda:0", {"device_id": "cuda:0"}])
    def test_what_is_no_device_is_refused(self, manager, junk):
        with pytest.raises(InvalidValue, match="device"):
            manager.register_device(junk)

    @pytest.mark.anyio
    async def test_what_is_unregistered_is_forgotten(self, manager):
        """D15: a device that is gone keeps no metrics and no word of itself."""
        manager.register_device(device())
        await manager.record_heartbeat(Heartbeat("cuda:0", metrics(), 5.0, False, "hot"))
        assert manager.unregister_device("cuda:0") is True
        assert manager.unregister_device("cuda:0") is False
        assert manager.get_aggregated_metrics() == {}
        manager.register_device(device())
        assert manager.select_best_device() == "cuda:0"
        (state,) = manager.snapshot().devices
        assert state.sample is None

    @pytest.mark.parametrize(
        ("bound", "value"), [("max_history", 0), ("stale_after_seconds", float("nan"))]
    )
    def test_an_impossible_bound_is_refused_by_name(self, bound, value):
        with pytest.raises(InvalidValue, match=bound):
            GPUClusteringManager(**{bound: value})


@pytest.mark.anyio
class TestTelemetry:
    async def test_aggregates_are_over_registered_devices(self, manager):
        manager.register_device(device("cuda:0"))
        manager.register_device(device("rocm:0"))
        await manager.record_metrics(metrics("cuda:0", 4))
        await manager.record_metrics(metrics("rocm:0", 8))
        found = manager.get_aggregated_metrics()
        assert (found["device_count"], found["used_memory_bytes"]) == (2, 12 * GB)

    async def test_a_stranger_is_dropped_with_one_warning(self, manager, caplog):
        """D15: unknown ids take no memory, and a reader that races with unregistering lives on."""
        with caplog.at_level(logging.WARNING, logger="exo.gpu"):
            for _ in range(3):
                await manager.record_metrics(metrics("ghost:0"))
                await manager.record_heartbeat(Heartbeat("ghost:0", None))
        assert [record.getMessage() for record in caplog.records] == [
            "dropped what 'ghost:0' sent: it is not registered"
        ]
        assert manager.get_aggregated_metrics() == {}

    async def test_the_warnings_are_bounded(self, manager, caplog):
        for index in range(300):
            await manager.record_metrics(metrics(f"ghost:{index}"))
        assert len(caplog.records) == 100

    @pytest.mark.parametrize("junk", [None, {"device_id": "cuda:0"}])
    async def test_what_is_no_sample_or_heartbeat_is_refused(self, manager, junk):
        with pytest.raises(InvalidValue, match="metrics"):
            await manager.record_metrics(junk)
        with pytest.raises(InvalidValue, match="heartbeat"):
            await manager.record_heartbeat(junk)

    async def test_the_snapshot_is_what_select_and_explain_take(self, manager):
        manager.register_device(device())
        before = manager.snapshot().version
        await manager.record_metrics(metrics())
        table = manager.snapshot()
        assert table.version > before
        assert "cuda:0 (hardware, cuda)" in explain(select(table, Request()), table)


@pytest.mark.anyio
class TestSelection:
    async def test_memory_decides_who_is_fit(self, manager):
        manager.register_device(device())
        await manager.record_metrics(metrics(used=20))
        assert manager.select_best_device(3 * GB) == "cuda:0"
        assert manager.select_best_device(min_memory_bytes=5 * GB) is None

    async def test_a_device_without_a_sample_is_chosen_behind_every_sampled_one(self, manager):
        """D13."""
        manager.register_device(device("cuda:0", memory=48))
        assert manager.select_best_device(30 * GB) == "cuda:0"
        manager.register_device(device("cuda:1"))
        await manager.record_metrics(metrics("cuda:1", used=23, percent=100.0))
        assert manager.select_best_device() == "cuda:1"

    async def test_a_full_busy_device_is_still_chosen_when_nothing_is_asked(self, manager):
        """D13."""
        manager.register_device(device())
        await manager.record_metrics(metrics(used=24, percent=100.0))
        assert manager.select_best_device() == "cuda:0"

    async def test_samples_of_1970_are_current_when_they_came_just_now(self, manager, clock):
        """D10: age is judged by the time of receipt."""
        manager.register_device(device())
        await manager.record_metrics(metrics(timestamp=1.0))
        assert manager.select_best_device() == "cuda:0"
        clock.now += 31
        assert manager.select_best_device() is None
        assert manager.snapshot().devices[0].health is Health.LOST

    async def test_hardware_comes_before_the_host(self, manager):
        manager.register_device(device("cpu:0"))
        manager.register_device(device("cuda:0"))
        await manager.record_metrics(metrics("cpu:0", used=0))
        await manager.record_metrics(metrics("cuda:0", used=20))
        assert manager.select_best_device() == "cuda:0"
        assert manager.select_best_device(10 * GB) == "cpu:0"

    async def test_a_negative_requirement_is_refused(self, manager):
        with pytest.raises(InvalidValue, match="min_memory_bytes"):
            manager.select_best_device(-1)

    async def test_nothing_registered_is_none(self, manager):
        assert manager.select_best_device() is None


@pytest.mark.anyio
class TestHeartbeats:
    """D15: is_available is listened to."""

    async def test_a_device_that_says_it_cannot_is_not_chosen_and_says_why(self, manager):
        manager.register_device(device())
        await manager.record_heartbeat(Heartbeat("cuda:0", metrics(), 5.0, False, "Xid 79"))
        assert manager.select_best_device() is None
        (refusal,) = select(manager.snapshot(), Request()).refusals
        assert refusal.reason == "is failed: Xid 79"

    async def test_until_a_newer_word(self, manager):
        manager.register_device(device())
        await manager.record_heartbeat(Heartbeat("cuda:0", None, 5.0, is_available=False))
        assert "not available" in manager.snapshot().devices[0].health_reason
        await manager.record_heartbeat(Heartbeat("cuda:0", metrics(), 4.0))
        assert manager.select_best_device() is None
        await manager.record_heartbeat(Heartbeat("cuda:0", metrics(), 6.0))
        assert manager.select_best_device() == "cuda:0"


class TestDistribution:
    @pytest.fixture
    def three(self, manager):
        for index in range(3):
            manager.register_device(device(f"cuda:{index}"))
        return manager

    def test_uniform(self, three):
        split = three.distribute_workload(list(range(12)))
        assert [len(items) for items in split.values()] == [4, 4, 4]

    def test_capacity(self, three):
        capacities = {"cuda:0": 1.0, "cuda:1": 2.0, "cuda:2": 1.0}
        split = three.distribute_workload(range(12), strategy="capacity", capacities=capacities)
        assert [len(items) for items in split.values()] == [3, 6, 3]

    def test_without_capacities_memory_weighs_across_vendors(self, manager):
        """D7: compute units are not comparable, so they do not count."""
        manager.register_device(device("cuda:0", memory=24, compute_units=128))
        manager.register_device(device("rocm:0", memory=48, compute_units=60))
        split = manager.distribute_workload(range(9), "capacity")
        assert [len(items) for items in split.values()] == [3, 6]

    def test_maxima_leave_the_rest_unassigned(self, three):
        """D1."""
        split = three.distribute_workload(range(15), max_per_device=3)
        assert (split.assigned_count, len(split.unassigned)) == (9, 6)

    def test_no_devices_lose_no_tasks(self, manager):
        """D5."""
        split = manager.distribute_workload(["a", "b"])
        assert (split, split.unassigned) == ({}, ["a", "b"])
        assert split.reasons == ("2 unassigned: no device takes part",)

    @pytest.mark.parametrize("where", ["capacities", "max_per_device"])
    def test_ghosts_are_refused_by_name(self, three, where):
        """D5: all work used to go to "ghost"."""
        with pytest.raises(NoSuchDevice, match="'ghost'"):
            three.distribute_workload(range(3), "capacity", **{where: {"ghost": 1}})

    def test_impossible_arguments_are_refused_by_name(self, three):
        """D4."""
        with pytest.raises(UnknownName, match="strategy"):
            three.distribute_workload(range(3), "fair")
        with pytest.raises(InvalidValue, match="capacities"):
            three.distribute_workload(range(3), "uniform", {"cuda:0": 1})
        with pytest.raises(InvalidValue, match=r"capacities\['cuda:1'\]"):
            three.distribute_workload(range(3), "capacity", {"cuda:1": float("nan")})

    def test_who_was_given_no_capacity_takes_no_part(self, three):
        split = three.distribute_workload(range(3), "capacity", {"cuda:1": 1})
        assert split == {"cuda:0": [], "cuda:1": [0, 1, 2], "cuda:2": []}
        assert split.reasons == (
            "cuda:0 takes no part: no capacity was given for it",
            "cuda:2 takes no part: no capacity was given for it",
        )

    def test_by_cost_from_a_matrix_or_by_device(self, three):
        """The same result type, which then also knows makespan, bound and loads."""
        matrix = [[1, 2, 9], [2, 1, 9], [9, 9, 1]]
        split = three.distribute_workload("abc", "cost", costs=matrix)
        assert split == {"cuda:0": ["a"], "cuda:1": ["b"], "cuda:2": ["c"]}
        assert (split.makespan, split.bound, split.gap) == (1.0, 1.0, 0.0)
        columns = {"cuda:0": [1, 2, 9], "cuda:2": [9, 9, 1]}
        split = three.distribute_workload("abc", "cost", costs=columns, seconds=5.0)
        assert split == {"cuda:0": ["a", "b"], "cuda:1": [], "cuda:2": ["c"]}
        assert split.reasons == ("cuda:1 takes no part: no costs were given for it",)

    def test_by_cost_keeps_maxima_and_says_what_fits_nowhere(self, three):
        costs = [[1, float("inf"), float("inf")]] * 3
        split = three.distribute_workload("abc", "cost", costs=costs, max_per_device={"cuda:0": 2})
        assert (split["cuda:0"], split.unassigned) == (["a", "b"], ["c"])
        assert "at its maximum (cuda:0 2)" in split.reasons[0]

    @pytest.mark.anyio
    async def test_by_cost_leaves_out_who_cannot_be_chosen(self, three):
        await three.record_heartbeat(Heartbeat("cuda:0", None, 5.0, False, "Xid 79"))
        inf = float("inf")
        split = three.distribute_workload("ab", "cost", costs=[[1, 5, inf], [1, 6, inf]])
        assert split == {"cuda:0": [], "cuda:1": ["a", "b"], "cuda:2": []}
        assert split.reasons == ("cuda:0 takes no part: is failed: Xid 79",)
        split = three.distribute_workload("ab", "cost", costs=[[1, inf, inf]] * 2)
        assert split.unassigned == ["a", "b"]
        assert split.reasons[0].endswith("no device that can be chosen now has a finite cost")

    @pytest.mark.anyio
    async def test_dynamic_weighs_what_a_newcomer_gets(self, three):
        """A wholly busy device gives a newcomer half, an idle or unknown one all of it."""
        await three.record_metrics(GPUMetrics("cuda:0", 1.0, compute_utilization_percent=100.0))
        split = three.distribute_workload(range(10), "dynamic", dict.fromkeys(three._devices, 2))
        assert [len(items) for items in split.values()] == [2, 4, 4]

    def test_what_a_strategy_has_no_use_for_is_refused(self, three):
        with pytest.raises(InvalidValue, match="costs: None"):
            three.distribute_workload("a", "cost")
        with pytest.raises(InvalidValue, match="capacities"):
            three.distribute_workload("a", "cost", {"cuda:0": 1}, costs=[[1, 1, 1]])
        with pytest.raises(InvalidValue, match="costs"):
            three.distribute_workload("a", "uniform", costs=[[1, 1, 1]])
        with pytest.raises(InvalidValue, match="a row for each of the 2 tasks"):
            three.distribute_workload("ab", "cost", costs=[[1, 1, 1]])
        with pytest.raises(NoSuchDevice, match="costs names 'ghost'"):
            three.distribute_workload("a", "cost", costs={"ghost": [1]})
        with pytest.raises(NoSuchDevice, match="max_per_device names 'ghost'"):
            three.distribute_workload("a", "cost", None, {"ghost": 1}, costs=[[1, 1, 1]])

    @pytest.mark.anyio
    async def test_ailing_devices_get_nothing_but_stay_in_the_answer(self, three):
        await three.record_heartbeat(Heartbeat("cuda:1", None, 5.0, False, "Xid 79"))
        split = three.distribute_workload(range(4))
        assert split == {"cuda:0": [0, 1], "cuda:1": [], "cuda:2": [2, 3]}
        assert split.reasons == ("cuda:1 takes no part: is failed: Xid 79",)

    def test_classes_and_runtimes_work_together_since_they_were_registered(self, manager):
        software = {"device_class": DeviceClass.SOFTWARE}
        for one in (device("cuda:0"), device("rocm:0"), device("vulkan:0", **software)):
            manager.register_device(one)
        assert [len(items) for items in manager.distribute_workload(range(3)).values()] == [1, 1, 1]


@pytest.mark.anyio
class TestRequests:
    async def test_a_request_is_answered_over_the_registered_devices(self, manager):
        for name in ("cuda:0", "rocm:0"):
            manager.register_device(device(name))
        await manager.record_metrics(metrics("cuda:0"))
        decision = manager.select(Request(runtime="rocm"))
        assert decision.chosen == ("rocm:0",)
        assert [one.device_id for one in decision.refusals] == ["cuda:0"]
        with pytest.raises(UnknownName, match="did you mean 'pack'"):
            manager.select(Request(policy="pac"))

    async def test_the_best_device_is_that_of_the_plain_definition_after_any_event(
        self, manager, clock
    ):
        """Rule: the order that is kept up to date never differs from one made anew."""

        def same():
            expected = select(manager.snapshot(), Request(all_devices=True)).chosen
            assert manager.select_best_device() == (expected[0] if expected else None)

        same()
        for name in ("cuda:0", "cuda:1", "rocm:0"):
            manager.register_device(device(name))
            same()
        await manager.record_metrics(metrics("cuda:1"))
        same()
        await manager.record_heartbeat(Heartbeat("cuda:1", None, 5.0, False, "Xid 79"))
        same()
        manager.unregister_device("cuda:0")
        same()
        await manager.record_metrics(metrics("rocm:0"))
        clock.now += 31
        same()
        manager.register_device(device("cuda:0"))
        same()


@pytest.mark.anyio
class TestLifecycle:
    async def test_after_shutdown_every_call_raises_the_same_error(self, manager):
        """D17."""
        manager.register_device(device())
        await manager.shutdown()
        await manager.shutdown()
        assert len(manager._devices) == 0
        calls = [
            lambda: manager.register_device(device()),
            lambda: manager.unregister_device("cuda:0"),
            lambda: manager.get_device("cuda:0"),
            manager.list_devices,
            lambda: manager.get_capabilities("cuda:0"),
            manager.get_aggregated_metrics,
            manager.snapshot,
            manager.select_best_device,
            lambda: manager.select(Request()),
            lambda: manager.distribute_workload([1]),
            manager.lease,
        ]
        for call in calls:
            with pytest.raises(ManagerClosed, match="was shut down"):
                call()
        awaited = [
            lambda: manager.record_metrics(metrics()),
            lambda: manager.record_heartbeat(Heartbeat("cuda:0", metrics())),
            manager.__aenter__,
        ]
        for call in awaited:
            with pytest.raises(ManagerClosed, match="was shut down"):
                await call()

    async def test_no_public_call_was_forgotten_above(self):
        """A new public name must be added to the test above."""
        public = {name for name in vars(GPUClusteringManager) if not name.startswith("_")}
        assert public == {
            "register_device", "unregister_device", "get_device", "list_devices",
            "get_capabilities", "get_aggregated_metrics", "snapshot", "select_best_device",
            "select", "distribute_workload", "record_metrics", "record_heartbeat", "lease", "shutdown",
            "recording",
        }  # fmt: skip

    async def test_async_with_shuts_down_also_after_an_error(self):
        manager = GPUClusteringManager()

        async def fail():
            async with manager:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        with pytest.raises(ManagerClosed):
            manager.list_devices()

    async def test_a_cancelled_caller_still_leaves_it_shut_down(self):
        manager = GPUClusteringManager()
        with anyio.CancelScope() as scope:
            async with manager:
                scope.cancel()
                await lowlevel.checkpoint()
        with pytest.raises(ManagerClosed):
            manager.list_devices()

    async def test_a_sample_that_arrives_during_shutdown_is_told_so(self, manager):
        """D18: no call slips in between the check and the change."""
        manager.register_device(device())
        outcomes = []

        async def record():
            try:
                await manager.record_metrics(metrics())
                outcomes.append("kept")
            except ManagerClosed:
                outcomes.append("closed")

        async def record_heartbeat():
            try:
                await manager.record_heartbeat(Heartbeat("cuda:0", None))
                outcomes.append("kept")
            except ManagerClosed:
                outcomes.append("closed")

        async with anyio.create_task_group() as group:
            group.start_soon(record)
            group.start_soon(record_heartbeat)
            group.start_soon(manager.shutdown)
        assert len(outcomes) == 2
        assert set(outcomes) <= {"kept", "closed"}


@pytest.mark.anyio
class TestConcurrency:
    async def test_many_tasks_and_threads_lose_nothing(self):
        """D18, D19: asyncio and trio, tasks and threads at once."""
        manager = GPUClusteringManager(max_history=1000)
        for index in range(4):
            manager.register_device(device(f"cuda:{index}"))

        async def report(index):
            for turn in range(50):
                await manager.record_metrics(metrics(f"cuda:{index}", timestamp=float(turn)))

        def observe():
            for index in range(50):
                manager.register_device(device(f"rocm:{index}"))
                assert manager.select_best_device() is not None
                assert manager.distribute_workload(range(7)).unassigned == []
                assert manager.unregister_device(f"rocm:{index}")

        async with anyio.create_task_group() as group:
            for index in range(4):
                group.start_soon(report, index)
                group.start_soon(report, index)
            group.start_soon(to_thread.run_sync, observe)
        assert len(manager.list_devices()) == 4
        for index in range(4):
            assert len(manager._telemetry.get_metrics_history(f"cuda:{index}")) == 100
        await manager.shutdown()

    async def test_the_loop_keeps_turning_under_heavy_use(self):
        """No call, and no row of calls, keeps other tasks waiting for 50 ms."""
        manager = GPUClusteringManager()
        for index in range(100):
            manager.register_device(device(f"cuda:{index}"))

        async def report(first):
            for turn in range(2000):
                await manager.record_metrics(
                    metrics(f"cuda:{(first + turn) % 100}", used=turn % 24)
                )

        async def choose():
            for _ in range(20):
                assert manager.select_best_device(GB) is not None
                await lowlevel.checkpoint()
                assert manager.get_aggregated_metrics()["device_count"] > 0
                await lowlevel.checkpoint()
                assert manager.distribute_workload(range(5000), "capacity").unassigned == []
                await lowlevel.checkpoint()

        async def work():
            async with anyio.create_task_group() as group:
                group.start_soon(report, 0)
                group.start_soon(report, 50)
                group.start_soon(choose)

        await manager.record_metrics(metrics("cuda:0"))
        assert await stall_seconds(work, limit=STALL_SECONDS) <= STALL_SECONDS
        await manager.shutdown()

    async def test_the_meter_sees_a_call_that_blocks(self):
        """The test above can fail."""

        async def work():
            time.sleep(2 * STALL_SECONDS)  # noqa: ASYNC251 - this is the fault
            await lowlevel.checkpoint()

        assert await stall_seconds(work, limit=STALL_SECONDS) > STALL_SECONDS

    async def test_the_meter_sees_a_row_of_calls_that_never_yields(self):
        async def work():
            ends = time.thread_time() + 2 * STALL_SECONDS
            while time.thread_time() < ends:
                pass
            await lowlevel.checkpoint()

        assert await stall_seconds(work, limit=STALL_SECONDS) > STALL_SECONDS


def test_importing_it_opens_nothing():
    code = (
        "import threading, exo.gpu.clustering, sys; assert threading.active_count() == 1;"
        "print({'numpy', 'wgpu', 'pynvml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
