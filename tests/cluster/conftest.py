"""A real Ray cluster on loopback: a head and two nodes, each with a card and leases of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 2**30
HERE = Path(__file__).parent

# Ray is told of a frozen node by its head; see exo.gpu.nodes.ray_node.
HEALTH = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1500"}
TOKEN = "0123456789abcdef" * 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder in one process, one after the other; Ray leaves sockets to the end."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("cluster"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.timeout(180))


def card(node: str) -> dict[str, Any]:
    return {
        "device_id": "cuda:0",
        "name": "Fake card",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "hardware_id": f"GPU-of-{node}",
        "memory_bytes": 8 * GIB,
        "sample": {
            "memory_total_bytes": 8 * GIB,
            "memory_used_bytes": GIB,
            "compute_utilization_percent": 0,
            "temperature_celsius": 40,
        },
    }


class Machines:
    """The machines of a cluster, each a Ray node in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self.nodes: dict[str, Any] = {}
        self._cluster = Cluster()
        self.add("head")
        self.address: str = self._cluster.address

    def environ(self, name: str) -> dict[str, str]:
        """What tells a process that it is on that machine."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        script = folder / "devices.json"
        script.write_text(json.dumps({"devices": [card(name)]}))
        return {"EXO_GPU_FAKE": str(script), "EXO_GPU_STATE": str(folder)}

    def add(self, name: str, *, gpus: int = 0, **environ: str) -> None:
        """Have a machine join, with so many GPUs that Ray manages."""
        self.nodes[name] = self._cluster.add_node(
            num_cpus=1,
            num_gpus=gpus,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            labels={"exo.node": name},
            env_vars=self.environ(name) | environ,
            node_ip_address="127.0.0.1",
        )

    def kill(self, name: str) -> None:
        """End all of a machine's processes at once."""
        self._cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def remove(self, name: str) -> None:
        """The same, and wait until the others know."""
        self.kill(name)
        self._cluster.wait_for_nodes(timeout=60)

    def raylet(self, name: str) -> int:
        """The pid of what makes a machine part of the cluster."""
        return self.nodes[name].all_processes["raylet"][0].process.pid

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A head and two nodes, for all tests of this folder; what one kills, it adds again."""
    if importlib.util.find_spec("ray") is None:  # to import it would be too early
        pytest.skip("a cluster needs the extra 'ray'")
    before = dict(os.environ)
    os.environ |= {f"RAY_health_check_{name}": text for name, text in HEALTH.items()}
    os.environ |= {
        "RAY_health_check_failure_threshold": "3",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    }
    found = Machines(tmp_path_factory.mktemp("machines"))
    for name in ("rig1", "rig2"):
        found.add(name)
    try:
        yield found
    finally:
        found.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def cluster(machines: Machines) -> Iterator[Any]:
    """A node over all machines, joined by this process."""
    from exo.gpu.coordination.cluster import connect_node

    with connect_node(machines.address) as node:
        yield node


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any]], Any]:
    """Waits for something to become true, and gives what it was."""

    def wait(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
        ends = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < ends, "it never came true"
            time.sleep(0.05)
        return found

    return wait
