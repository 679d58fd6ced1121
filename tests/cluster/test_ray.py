"""What a cluster of Ray may be like: other versions, GPUs that Ray manages, environments."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from exo.gpu.coordination.cluster import connect_node
from exo.gpu.coordination.executor import GPUExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANAGED = "rig5/cuda:0"


def variable(name: str) -> str | None:
    import os

    return os.environ.get(name)


def test_a_node_with_another_version_installed_does_not_count_and_says_why(
    machines: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """Rule: nothing runs on a node with another version; which one, and what to do, is told."""
    older = tmp_path / "exo_gpu-0.0.1.dist-info"
    older.mkdir()
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: exo-gpu\nVersion: 0.0.1\n")
    machines.add("rig4", PYTHONPATH=str(tmp_path))
    try:
        with connect_node(machines.address) as node:

            def standing() -> Any:
                return {one.node: one for one in node.nodes()}.get("rig4")

            until(lambda: standing() and standing().reason)
            assert not standing().alive
            assert "it has exo-gpu 0.0.1" in standing().reason
            assert "install the same there" in standing().reason
            assert "head/cuda:0" in {one.device_id for one in node.inventory().devices}
    finally:
        machines.remove("rig4")


@pytest.mark.parametrize(("module", "value"), [("ray", "1.0.0"), ("python", "3.99.1")])
def test_a_cluster_of_another_ray_or_python_is_refused_in_one_line(
    machines: Any, module: str, value: str
) -> None:
    """Rule: what differs, and what to install, is one line."""
    import ray

    python = platform.python_version()
    mine = (value, python) if module == "ray" else (ray.__version__, value)
    lines = [
        "import ray, sys",
        "from ray._private import utils",
        f"utils.compute_version_info = lambda: {mine!r}",
        "import exo.gpu.cli.main as program",
        "sys.argv = ['exo-gpu', 'devices', '--cluster']",
        "sys.exit(program.main())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"RAY_ADDRESS": machines.address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "runs another version" in done.stderr
    assert value in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def managed(machines: Any) -> Iterator[Any]:
    """A machine whose GPU is Ray's to give."""
    machines.add("rig5", gpus=1)
    yield machines
    machines.remove("rig5")


def free_gpus() -> float:
    import ray

    return ray.available_resources().get("GPU", 0.0)


def seen_by_work(node: Any) -> str | None:
    with GPUExecutor(cluster=node, devices=(MANAGED,)) as executor:
        return executor.submit(variable, "CUDA_VISIBLE_DEVICES").result(60)


def has(node: Any, device_id: str) -> bool:
    return device_id in {one.device_id for one in node.inventory().devices}


def test_of_gpus_that_ray_manages_only_those_are_used_that_it_grants(
    cluster: Any, managed: Any, until: Callable[..., Any]
) -> None:
    """Rule: where Ray gives GPUs out, ours are those it gave us, for as long as we are there."""
    del managed
    until(lambda: has(cluster, MANAGED))
    assert free_gpus() == 0
    assert seen_by_work(cluster) == "0"


def test_an_environment_of_ray_is_that_of_the_work(machines: Any, tmp_path: Path) -> None:
    """Rule: variables and files of a runtime_env are there for every worker of this program."""
    (tmp_path / "of_this_job.py").write_text("def answer():\n    return 42\n")
    runtime_env = {"env_vars": {"OF_THIS_JOB": "yes"}, "working_dir": str(tmp_path)}

    def look() -> tuple[str | None, int]:
        import os

        from of_this_job import answer  # pyright: ignore[reportMissingImports]

        return os.environ.get("OF_THIS_JOB"), answer()

    with (
        connect_node(machines.address, runtime_env=runtime_env) as node,
        GPUExecutor(cluster=node, devices=("rig1/cuda:0",)) as executor,
    ):
        assert executor.submit(look).result(60) == ("yes", 42)
