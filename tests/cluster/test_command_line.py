"""The commands over a whole cluster, and those that make one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL = {"head/cuda:0", "rig1/cuda:0", "rig2/cuda:0"}
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def exo_gpu(*words: str, status: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exo.gpu", *words]
    done = subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def test_every_command_works_over_all_machines(machines: Any) -> None:
    """Rule: with one more word a command means all machines, and is else the same."""

    def run(*words: str, status: int = 0) -> str:
        return exo_gpu(*words, status=status, RAY_ADDRESS=machines.address).stdout

    listed = json.loads(run("devices", "--cluster", "--json"))["devices"]
    assert {one["device_id"] for one in listed} == ALL
    assert "rig1/cuda:0" in run("top", "--once", "--cluster")
    assert run("ps", "--cluster", "--device", "rig2/cuda:0")
    assert "Nobody holds a lease." in run("leases", "--cluster")
    chosen = run("select", "--cluster", "--device", "rig2/cuda:0", "--format", "env")
    assert "EXO_GPU_FAKE_VISIBLE=GPU-of-rig2" in chosen
    said = run(
        "run", "--cluster", "--device", "rig1/cuda:0", "--", "sh", "-c", "pwd; exit 7", status=7
    )
    assert said.strip() == os.getcwd()
    done = run("map", "--cluster", "-k", "echo {} {device}", ":::", *map(str, range(12)))
    assert [line.split()[0] for line in done.splitlines()] == [str(n) for n in range(12)]
    assert {line.split()[1] for line in done.splitlines()} <= ALL


@pytest.fixture
def own_cluster(
    tmp_path: Path, machines: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """What a command needs to make a cluster of its own; it is ended whatever happens."""
    del machines  # its settings of the environment
    for name, value in {
        "EXO_GPU_CLUSTER": str(tmp_path / "cluster"),
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield f"127.0.0.1:{free_port}"
    subprocess.run([sys.executable, "-m", "exo.gpu", "cluster", "stop"], capture_output=True)


@pytest.fixture
def free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_cluster_is_started_seen_and_stopped(
    own_cluster: str, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """Rule: nothing listens beyond loopback unless told, a token is made, and all of it ends."""
    port = own_cluster.rpartition(":")[2]
    said = exo_gpu("cluster", "start", "--head", "--port", port, "--name", "one").stderr
    assert f"heads a cluster at {own_cluster}" in said
    assert re.fullmatch("[0-9a-f]{64}", (tmp_path / "token").read_text())
    assert (tmp_path / "token").stat().st_mode & 0o77 == 0
    started = json.loads((tmp_path / "cluster" / "one.json").read_text())
    family = psutil.Process(started["pid"])
    members = [family, *family.children(recursive=True)]
    assert all(
        held.laddr.ip in LOOPBACK
        for one in members
        for held in one.net_connections()
        if held.status == psutil.CONN_LISTEN
    )
    found = json.loads(exo_gpu("cluster", "status", "--json").stdout)["nodes"]
    assert [(one["node"], one["alive"]) for one in found] == [("one", True)]
    again = exo_gpu("cluster", "start", "--head", "--name", "one", status=1).stderr
    assert "runs here already" in again
    assert "one" in exo_gpu("cluster", "status").stdout
    assert exo_gpu("run", "--cluster", "--", "echo", "well").stdout == "well\n"
    exo_gpu("cluster", "stop")
    until(lambda: not any(one.is_running() for one in members))
    assert "no node of a cluster was started here" in exo_gpu("cluster", "stop", status=1).stderr


def test_what_cannot_be_joined_is_said_in_one_line(own_cluster: str) -> None:
    """Rule: no token, no cluster and no address are one line each, with what to do."""
    assert "is alone" in exo_gpu("cluster", "join", own_cluster, status=2).stderr
    assert "--host" in exo_gpu("cluster", "join", "192.0.2.1:6379", status=2).stderr
    words = ("cluster", "join", "192.0.2.1:6379", "--host", "192.0.2.2")
    assert "there is no token" in exo_gpu(*words, status=1).stderr
    assert "HOST:PORT" in exo_gpu("cluster", "join", "elsewhere", status=2).stderr
    assert "--head" in exo_gpu("cluster", "start", status=2).stderr


def test_where_a_node_cannot_be_is_said_at_once(own_cluster: str, tmp_path: Path) -> None:
    """Rule: a port that is taken, an address of another machine, a head that is not there."""
    port = own_cluster.rpartition(":")[2]
    (tmp_path / "token").write_text("ab" * 32)
    join = ("cluster", "join", f"127.0.0.2:{port}", "--host")
    assert f"no cluster answers at 127.0.0.2:{port}" in exo_gpu(*join, "127.0.0.3", status=1).stderr
    assert "nothing can listen at 198.51.100.7" in exo_gpu(*join, "198.51.100.7", status=1).stderr
    assert "HOST:PORT" in exo_gpu("cluster", "join", "127.0.0.2:99999", status=2).stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(port)))
        taken.listen()
        start = exo_gpu("cluster", "start", "--head", "--port", port, status=1)
        assert f"nothing can listen at 127.0.0.1:{port}" in start.stderr
    said = exo_gpu("devices", "--cluster", status=1, RAY_ADDRESS="nonsense").stderr
    assert "'nonsense' is no address of a cluster" in said
