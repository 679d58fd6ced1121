"""Work on many machines is as on one: everything once, in order, where a lease allows it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exo.gpu.coordination.commands import CommandRun
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.coordination.manager import GPUClusteringManager
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import NeverAvailable, NotNow
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

NODES = ("head", "rig1", "rig2")
ALL = {"head/cuda:0", "rig1/cuda:0", "rig2/cuda:0"}


def slow_square(number: int) -> int:
    import time

    time.sleep(0.01)
    return number * number


def test_devices_of_all_nodes_bear_their_node_s_name(cluster: Any) -> None:
    """Rule: a device of another machine is called after its node, and is as its agent says."""
    states = cluster.snapshot().devices
    assert {state.device.device_id for state in states} == ALL
    assert all(state.sample.memory_used_bytes == 2**30 for state in states)
    assert {one.node for one in cluster.nodes() if one.alive} == {"head", "rig1", "rig2"}


def test_results_come_back_once_and_in_order_from_all_nodes(cluster: Any) -> None:
    """Rule: every item is done once, and every node does its part."""
    with GPUExecutor(cluster=cluster) as executor:
        assert {device.device_id for device in executor.devices} == ALL
        done = list(executor.stream(slow_square, range(300)))
        assert sorted(one.item_index for one in done) == list(range(300))
        assert {one.device_id for one in done} == ALL
        assert list(executor.map(slow_square, range(50))) == [n * n for n in range(50)]


def test_large_values_travel_both_ways_and_are_one_s_own(cluster: Any) -> None:
    """Rule: a large array that a function holds, an argument and a result arrive whole."""
    weights = np.arange(600_000, dtype=np.float64)

    def add(array: np.ndarray) -> np.ndarray:
        return array + weights

    with GPUExecutor(cluster=cluster) as executor:
        items = [np.full(600_000, float(n)) for n in range(6)]
        for n, result in enumerate(executor.map(add, items)):
            assert np.array_equal(result, weights + n)
            result[0] = -1  # it may be changed, as on one machine


def test_an_exception_of_a_far_worker_is_raised_here(cluster: Any) -> None:
    """Rule: what a function raises on another machine is what its caller sees."""
    with GPUExecutor(cluster=cluster) as executor:
        future = executor.submit(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            future.result()


def test_a_local_user_of_a_node_keeps_the_cluster_out(cluster: Any, machines: Any) -> None:
    """Rule: a proposal is granted by the node's own store, where local users stand as well."""
    request = Request(devices=("rig1/cuda:0",), exclusive=True)
    with LocalNode(os.environ | machines.environ("rig1")) as local:
        held = local.acquire(Request(exclusive=True))
        assert held.lease_ids
        refused = cluster.acquire(request)
        assert not refused.lease_ids
        assert not refused.decision.never
        local.release(held.lease_ids[0])
        granted = cluster.acquire(request)
        assert granted.decision.chosen == ("rig1/cuda:0",)
        assert not local.acquire(Request(), wait_seconds=0).lease_ids
        cluster.release(granted.lease_ids[0])
        assert local.acquire(Request(), wait_seconds=30).lease_ids


def test_a_gang_is_held_on_all_its_nodes_or_on_none(cluster: Any) -> None:
    """Rule: several devices are granted by several stores, all or nothing."""
    grant = cluster.acquire(Request(count=3, exclusive=True))
    assert set(grant.decision.chosen) == ALL
    assert len(set(grant.lease_ids)) == 3
    with pytest.raises(NotNow), GPUExecutor(cluster=cluster):
        pass
    for lease_id in grant.lease_ids:
        cluster.release(lease_id)
    with pytest.raises(NeverAvailable), GPUExecutor(cluster=cluster, memory="9GiB"):
        pass
    assert cluster.acquire(Request(count=4)).decision.never


def test_commands_run_in_this_directory_and_long_output_arrives(cluster: Any) -> None:
    """Rule: a command starts where its caller is, and what it prints comes back, long or not."""
    commands = ["pwd", "head -c 3000000 /dev/zero", "exit 3"]
    with CommandRun(commands, request=Request(), node=cluster) as run:
        done = {one.index: one.outcome for one in run}
        assert done[0].stdout.decode().strip() == os.getcwd()
        held = done[1].held_stdout
        assert (held.read(0, 4_000_000) if held else done[1].stdout) == bytes(3_000_000)
        assert done[2].exit_status == 3


def test_a_manager_knows_every_device_and_leases_one(
    machines: Any, cluster: Any, until: Callable[..., Any]
) -> None:
    """Rule: the manager's calls are over all devices of all nodes once it is connected."""
    del cluster  # the process has joined already
    manager = GPUClusteringManager.connect(machines.address)

    async def use() -> str:
        async with manager.lease(memory="1GiB") as device:
            held = {lease.device_id for lease in manager.node.leases()}
            assert device.device_id in held
            assert device.environment()["EXO_GPU_LEASES"]
            return device.device_id

    try:
        assert {device.device_id for device in manager.list_devices()} == ALL
        assert manager.select_best_device() in ALL
        assert manager.get_aggregated_metrics()["used_memory_bytes"] == 3 * 2**30
        assert manager.select(Request(node="rig2")).chosen == ("rig2/cuda:0",)
        split = manager.distribute_workload(range(9))
        assert {name: len(tasks) for name, tasks in split.items()} == dict.fromkeys(ALL, 3)
        assert asyncio.run(use()) in ALL
        until(lambda: not manager.node.leases())
    finally:
        asyncio.run(manager.shutdown())


def test_the_ways_between_nodes_are_measured_while_nobody_works(cluster: Any) -> None:
    """Rule: each agent measures how fast it reaches the others, and not under load."""
    routes = cluster.routes()
    assert {(one.source, one.target) for one in routes} == {
        (source, target) for source in NODES for target in NODES if source != target
    }
    assert all(one.latency_seconds > 0 for one in routes)
    assert all(one.bandwidth_bytes_per_second > 0 for one in routes)
    assert cluster.routes() == routes  # it is known for a while
