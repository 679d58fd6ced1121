"""A real Ray cluster on this machine: a head without devices, and three nodes of unlike speed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
SPEEDS = {"slow": 1, "twice": 2, "fourfold": 4}
SPEED_VARIABLE = "BENCH_NODE_SPEED"

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}


def rest(seconds: float) -> float:
    """One item: what the slowest node needs for it, less on a faster one."""
    import os
    import time

    time.sleep(seconds / int(os.environ["BENCH_NODE_SPEED"]))
    return seconds


class Machines:
    """The cluster; a node may be killed."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._cluster = Cluster()
        self._add("head", None)
        self._nodes = {name: self._add(name, speed) for name, speed in SPEEDS.items()}
        self.address: str = self._cluster.address

    def _add(self, name: str, speed: int | None) -> Any:
        folder = self._folder / name
        folder.mkdir()
        card = {
            "device_id": "cuda:0",
            "name": "Fake card",
            "vendor": "NVIDIA",
            "backend": "fake",
            "runtime": "cuda",
            "hardware_id": f"FAKE-{name}",
            "memory_bytes": 8 * GIB,
            "sample": {"memory_total_bytes": 8 * GIB, "memory_used_bytes": 0},
        }
        devices = [card] if speed else []
        (folder / "box.json").write_text(json.dumps({"devices": devices}))
        variables = {"EXO_GPU_FAKE": str(folder / "box.json"), "EXO_GPU_STATE": str(folder)}
        return self._cluster.add_node(
            num_cpus=1 if speed else 0,
            num_gpus=0,
            object_store_memory=80 * 2**20,
            include_dashboard=False,
            labels={"exo.node": name},
            env_vars=variables | {SPEED_VARIABLE: str(speed or 1)},
            node_ip_address="127.0.0.1",
        )

    def kill(self, name: str) -> None:
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def machines() -> Iterator[Machines]:
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as name:
        found = Machines(Path(name))
        try:
            yield found
        finally:
            found.shutdown()
            os.environ.clear()
            os.environ.update(before)


def timed(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
