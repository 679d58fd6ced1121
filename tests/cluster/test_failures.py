"""Whatever dies of a cluster: nothing is lost, nothing comes twice, and nobody holds on."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

DRIVER = """
import os, sys, time
from exo.gpu.coordination.executor import GPUExecutor

def rest(seconds):
    import os, time
    time.sleep(seconds)
    return os.getpid()

with GPUExecutor(cluster=sys.argv[1], devices=tuple(sys.argv[3:])) as executor:
    executor.start(60)
    print("ready", *executor.map(rest, [0.0] * len(executor.lanes), chunksize=1), flush=True)
    print(sum(1 for _ in executor.map(rest, [float(sys.argv[2])] * 20)), flush=True)
"""


def slow(number: int) -> int:
    import time

    time.sleep(0.02)
    return number


def devices_of(node: Any) -> set[str]:
    return {state.device.device_id for state in node.snapshot().devices}


def member_of(node: Any, name: str) -> Any:
    return node._membership.members.get(name)


def run_through(cluster: Any, strike: Callable[[], None], count: int = 400) -> list[int]:
    """Results of a map in the middle of which something happens."""
    results: list[int] = []
    with GPUExecutor(cluster=cluster) as executor:
        for done in executor.stream(slow, range(count)):
            results.append(done.item_index)
            if len(results) == count // 5:
                strike()
    return results


def test_a_node_that_is_killed_loses_and_doubles_nothing(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: a dead node's unfinished items run elsewhere; it comes back under its name."""
    results = run_through(cluster, lambda: machines.kill("rig2"))
    assert sorted(results) == list(range(400))
    until(lambda: "rig2/cuda:0" not in devices_of(cluster))
    lost = {one.node: one for one in cluster.nodes()}["rig2"]
    assert not lost.alive
    assert lost.reason
    machines.add("rig2")
    until(lambda: "rig2/cuda:0" in devices_of(cluster))
    until(lambda: not cluster.leases())


def test_commands_go_on_elsewhere_and_print_nothing_but_their_own(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: what Ray has to say of a dead node does not stand among the results of a program."""
    until(lambda: devices_of(cluster) == {"head/cuda:0", "rig1/cuda:0", "rig2/cuda:0"})
    words = ["map", "--cluster", "sleep 0.2; echo {}", ":::", *map(str, range(60))]
    environ = os.environ | {"RAY_ADDRESS": machines.address}
    with subprocess.Popen(
        [sys.executable, "-m", "exo.gpu", *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline() for _ in range(10)]
        machines.kill("rig2")
        lines += program.stdout.readlines()
    assert program.returncode == 0
    assert sorted(map(int, lines)) == list(range(60))
    until(lambda: "rig2/cuda:0" not in devices_of(cluster))
    machines.add("rig2")
    until(lambda: "rig2/cuda:0" in devices_of(cluster))


def test_an_agent_that_is_killed_comes_back_with_its_devices(
    cluster: Any, until: Callable[..., Any]
) -> None:
    """Rule: an agent's death costs what it was at, and it starts again by itself."""
    before = until(lambda: member_of(cluster, "rig1"))
    results = run_through(cluster, lambda: os.kill(before.pid, signal.SIGKILL))
    assert sorted(results) == list(range(400))
    after = until(lambda: member_of(cluster, "rig1"))
    assert after.pid != before.pid
    until(lambda: "rig1/cuda:0" in devices_of(cluster))
    until(lambda: not cluster.leases())


def test_a_frozen_node_is_lost_and_late_results_do_no_harm(
    cluster: Any, until: Callable[..., Any]
) -> None:
    """Rule: one that does not answer is lost; what it sends once it thaws is nobody's any more."""
    member = until(lambda: member_of(cluster, "rig1"))
    os.kill(member.pid, signal.SIGSTOP)
    try:
        os.kill(member.pid, signal.SIGCONT)
        results = run_through(cluster, lambda: os.kill(member.pid, signal.SIGSTOP))
        assert sorted(results) == list(range(400))
        until(lambda: "rig1/cuda:0" not in devices_of(cluster))
    finally:
        os.kill(member.pid, signal.SIGCONT)
    until(lambda: "rig1/cuda:0" in devices_of(cluster))
    until(lambda: not cluster.leases())


def test_a_node_whose_ray_is_frozen_is_found_dead_by_the_others(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: a node that its cluster hears nothing of is lost, though its agent still answers."""
    until(lambda: member_of(cluster, "rig2"))
    raylet = machines.raylet("rig2")
    results = run_through(cluster, lambda: os.kill(raylet, signal.SIGSTOP), count=800)
    assert sorted(results) == list(range(800))
    until(lambda: "rig2/cuda:0" not in devices_of(cluster))
    os.kill(raylet, signal.SIGCONT)
    machines.kill("rig2")
    machines.add("rig2")
    until(lambda: "rig2/cuda:0" in devices_of(cluster))
    until(lambda: not cluster.leases())


def test_the_only_node_of_some_work_may_come_back(cluster: Any, until: Callable[..., Any]) -> None:
    """Rule: where the last device went with its node, what is left waits a while for it."""
    before = until(lambda: member_of(cluster, "rig1"))
    results: list[int] = []
    with GPUExecutor(cluster=cluster, devices=("rig1/cuda:0",)) as executor:
        for done in executor.stream(slow, range(100)):
            results.append(done.item_index)
            if len(results) == 20:
                os.kill(before.pid, signal.SIGKILL)
    assert sorted(results) == list(range(100))
    until(lambda: not cluster.leases())


def test_a_node_that_joins_takes_part_in_what_runs_already(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: devices that come, or come back, while an executor works get their share of it."""
    until(lambda: "rig2/cuda:0" in devices_of(cluster))
    machines.kill("rig2")
    until(lambda: "rig2/cuda:0" not in devices_of(cluster))
    with GPUExecutor(cluster=cluster) as executor:
        assert {one.device_id for one in executor.devices} == {"head/cuda:0", "rig1/cuda:0"}
        machines.add("rig2")
        used: set[str] = set()
        for done in executor.stream(slow, itertools.count()):
            used.add(done.device_id)
            if "rig2/cuda:0" in used:
                break
    until(lambda: not cluster.leases())


def test_two_drivers_work_at_once_each_on_what_it_holds(cluster: Any, machines: Any) -> None:
    """Rule: several programs share a cluster as they share a machine."""
    words = [sys.executable, "-c", DRIVER, machines.address, "0.05", "rig1/cuda:0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().startswith("ready")
        with GPUExecutor(cluster=cluster) as executor:
            assert {one.device_id for one in executor.devices} == {"head/cuda:0", "rig2/cuda:0"}
            assert list(executor.map(slow, range(50))) == list(range(50))
        assert other.stdout.read().strip() == "20"
    assert other.returncode == 0


def test_what_a_killed_driver_held_ends(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: a driver's leases and workers end with it, also when nothing of it could say so."""
    words = [sys.executable, "-c", DRIVER, machines.address, "600", "rig1/cuda:0", "rig2/cuda:0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        _, *pids = driver.stdout.readline().split()
        assert len(pids) == 2
        assert len(cluster.leases()) == 2
        driver.send_signal(signal.SIGKILL)
    until(lambda: not cluster.leases())
    for pid in pids:
        until(lambda pid=pid: not is_running(int(pid)))
    with LocalNode(os.environ | machines.environ("rig1")) as local:
        assert local.acquire(Request(exclusive=True), wait_seconds=30).lease_ids


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_an_agent_of_another_version_is_replaced(
    cluster: Any, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: an agent that runs other code than this is ended, and one of this version begun."""
    import ray

    del cluster
    from exo.gpu.coordination.cluster import connect_node
    from exo.gpu.nodes.ray_cluster import NAMESPACE, NODE_LABEL

    installed = version("exo-gpu")

    class Older:
        def answer(self, call: str, arguments: tuple[Any, ...]) -> Any:
            del arguments
            return ("0.0.1", installed) if call == "version" else "nothing"

        listen = order = answer

    machines.add("rig3")
    try:
        groups = {"listen": 1, "answer": 1, "order": 1}
        older = ray.remote(concurrency_groups=groups)(Older).options(
            name="agent-rig3",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            label_selector={NODE_LABEL: "rig3"},
        )
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor("agent-rig3", namespace=NAMESPACE))
        until(lambda: not has_actor("agent-rig3"))
        actor = older.remote()
        assert ray.get(actor.answer.remote("version", ())) == ("0.0.1", installed)
        with connect_node(machines.address) as node:
            until(lambda: "rig3/cuda:0" in devices_of(node))
            assert {one.node: one.version for one in node.nodes()}["rig3"] != "0.0.1"
    finally:
        machines.remove("rig3")


def has_actor(name: str) -> bool:
    import ray

    from exo.gpu.nodes.ray_cluster import NAMESPACE

    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("environ", "address", "words"),
    [
        ({}, "127.0.0.1:1", "no cluster answers at 127.0.0.1:1"),
        ({}, "ray://127.0.0.1:1", "ray://127.0.0.1:1"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, None, "refuses this token"),
        ({"PYTHONPATH": "no-ray"}, None, "pip install 'exo-gpu[ray]'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    machines: Any, tmp_path: Any, environ: dict[str, str], address: str | None, words: str
) -> None:
    """Rule: a wrong address, a wrong token and no Ray are one line each that says what to do."""
    if "PYTHONPATH" in environ:  # a module of that name that cannot be imported
        (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('No module named ray')\n")
        environ = {"PYTHONPATH": str(tmp_path)}
    environ = environ | {"RAY_ADDRESS": address or machines.address}
    command = [sys.executable, "-m", "exo.gpu", "devices", "--cluster"]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
