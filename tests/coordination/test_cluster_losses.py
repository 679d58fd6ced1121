"""What goes wrong between machines, at the moments at which it is worst: nothing is lost or held."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from boxes import device
from cables import Cables

from exo.gpu.coordination.commands import CommandRun
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.nodes.cluster.cluster_node import ClusterNode
from exo.gpu.vocabulary.errors import ExecutorClosed, NodeLost, WorkerDied
from exo.gpu.vocabulary.job import Ending
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_SECONDS = 60


@pytest.fixture
def cables(tmp_path: Path) -> Iterator[Cables]:
    found = Cables(tmp_path)
    for name in ("rig1", "rig2"):
        found.plug(name, device("cuda:0", "NVIDIA", "cuda"))
    yield found
    found.pull_all()


@pytest.fixture
def node(cables: Cables) -> Iterator[ClusterNode]:
    with cables.join(lambda: None) as joined:
        yield joined


def slow(number: int) -> int:
    time.sleep(0.02)
    return number


def until(holds: Callable[[], Any]) -> Any:
    ends = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.01)
    return found


def test_items_that_were_cancelled_in_between_are_not_counted_for_others(
    cables: Cables, node: ClusterNode
) -> None:
    """Rule: a lost node's work is taken back by item, not by how many were heard of."""
    with GPUExecutor(node=node) as executor:
        executor.start(WAIT_SECONDS)
        futures = [executor.submit(slow, number) for number in range(200)]
        cancelled: set[int] = set()
        until(lambda: sum(future.done() for future in futures) > 20)
        for number in range(30, 200, 7):
            if futures[number].cancel():
                cancelled.add(number)
        cables.pull("rig1")
        for number, future in enumerate(futures):
            if number not in cancelled:
                assert future.result(WAIT_SECONDS) == number
    assert cancelled
    assert not node.leases()


def test_leaving_a_cluster_ends_what_is_open_there_with_an_error(node: ClusterNode) -> None:
    """Rule: whoever waits for work of a cluster that was left is told, and does not wait on."""
    with GPUExecutor(node=node) as executor:
        future = executor.submit(time.sleep, 600)
        until(future.running)
        node.close()
        with pytest.raises((WorkerDied, ExecutorClosed), match="left"):
            future.result(WAIT_SECONDS)


def test_a_lease_whose_answer_was_lost_is_nobody_s(cables: Cables, node: ClusterNode) -> None:
    """Rule: what a node granted without our hearing of it is given back, at once."""
    rig = cables.rigs["rig1"]
    answered = rig.ask

    def ask(call: str, *arguments: Any, timeout_seconds: float) -> Any:
        answer = answered(call, *arguments, timeout_seconds=timeout_seconds)
        if call == "acquire":
            raise NodeLost("rig1 has not answered for 30 s")
        return answer

    rig.ask = ask
    request = Request(devices=("rig1/cuda:0",), exclusive=True)
    grant = node.acquire(request)
    assert not grant.lease_ids
    assert "does not answer" in grant.decision.refusals[0].reason
    rig.ask = answered
    until(lambda: not node.leases())
    assert node.acquire(request).lease_ids


def test_commands_use_machines_that_join(cables: Cables, node: ClusterNode) -> None:
    """Rule: as many commands run at once as there are slots, also of those that came later."""
    cables.pull("rig2")
    until(lambda: len(node.inventory().devices) == 1)
    used: set[str] = set()
    with CommandRun(("sleep 0.2" for _ in range(10_000)), request=Request(), node=node) as run:
        cables.plug("rig3", *(device(f"cuda:{one}", "NVIDIA", "cuda") for one in range(5)))
        for done in run:
            used.add(done.device_id)
            if len(used) == 6:
                break


def test_what_a_command_printed_outlives_its_node(cables: Cables, node: ClusterNode) -> None:
    """Rule: an item that was told succeeded has its output, however long, whatever dies then."""
    size = 3_000_000
    with CommandRun([f"head -c {size} /dev/zero"], request=Request(), node=node) as run:
        for done in run:
            cables.pull(done.device_id.partition("/")[0])
            assert done.outcome.ending is Ending.SUCCEEDED
            assert done.outcome.held_stdout is not None
            assert done.outcome.held_stdout.read(0, size + 1) == bytes(size)


def test_work_that_cannot_be_taken_in_ends_its_slot(cables: Cables, node: ClusterNode) -> None:
    """Rule: an agent that cannot make sense of a work says so, and nobody waits for it."""
    (name,) = {one.name for one in cables.places()} - {"rig2"}
    with GPUExecutor(node=node, devices=(f"{name}/cuda:0",)) as executor:
        executor.start(WAIT_SECONDS)
        (session,) = cables.rigs[name].service._sessions.values()

        def lost(handle: object) -> object:
            raise OSError("the store is full")

        session._fetch = lost
        future = executor.submit(len, bytes(2_000_000))
        with pytest.raises(WorkerDied, match="the store is full"):
            future.result(WAIT_SECONDS)
