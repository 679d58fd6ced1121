"""Machines that join by command, and a head that dies: told in a line, and gone on with later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
ITEMS = 400

DRIVER = """
import sys
import exo.gpu as gpu
from exo.gpu.coordination.executor import GPUExecutor

def slow(number):
    import time
    time.sleep(0.05)
    return number

address, journal, resume = sys.argv[1], sys.argv[2], sys.argv[3:] == ["resume"]
with GPUExecutor(cluster=address) as executor:
    results = executor.map(slow, range(ITEMS), chunksize=1, journal=journal, resume=resume)
    for place, result in enumerate(results):
        assert result is gpu.DONE_BEFORE if resume and place == 0 else result in (place, gpu.DONE_BEFORE)
        print(place, result is gpu.DONE_BEFORE, flush=True)
""".replace("ITEMS", str(ITEMS))


class OwnCluster:
    """Two machines of a cluster that commands made, each at a loopback address of its own."""

    def __init__(self, port: int, environ_of: Callable[[str], dict[str, str]]) -> None:
        self.address = f"{HEAD}:{port}"
        self._environ_of = environ_of

    def command(self, *words: str, on: str = "one") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "exo.gpu", "cluster", *words]
        environ = os.environ | self._environ_of(on)
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        said = self.command("start", "--head", "--host", HEAD, "--port", port, "--name", "one")
        assert f"cluster join {self.address}" in said.stderr

    def join(self) -> None:
        said = self.command("join", self.address, "--host", OTHER, "--name", "two", on="two")
        assert f"has joined the cluster at {self.address}" in said.stderr


@pytest.fixture
def own_cluster(
    tmp_path: Path, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OwnCluster]:
    """Such a cluster; whatever was started of it is ended."""
    import socket

    monkeypatch.setenv("EXO_GPU_CLUSTER", str(tmp_path / "cluster"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as probe:
        probe.bind((HEAD, 0))
        port = probe.getsockname()[1]
    yield OwnCluster(port, machines.environ)
    subprocess.run([sys.executable, "-m", "exo.gpu", "cluster", "stop"], capture_output=True)


def test_a_head_that_dies_is_told_and_the_journal_goes_on(
    own_cluster: OwnCluster, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """Rule: without its head a cluster ends with a clear error, and what was done stays done."""
    own_cluster.start()
    own_cluster.join()
    status = json.loads(own_cluster.command("status", "--json").stdout)["nodes"]
    assert [(one["node"], one["alive"]) for one in status] == [("one", True), ("two", True)]
    # By itself Ray ends whoever lost its head after a minute.
    patience = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "40"}
    words = [sys.executable, "-c", DRIVER, own_cluster.address, str(tmp_path / "work.journal")]
    with subprocess.Popen(
        words, env=patience, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        assert driver.stderr is not None
        for _ in range(20):
            assert driver.stdout.readline()
        head = json.loads((tmp_path / "cluster" / "one.json").read_text())["pid"]
        for one in [psutil.Process(head), *psutil.Process(head).children(recursive=True)]:
            one.kill()
        problem = driver.stderr.read()
    assert driver.returncode == 1
    assert "the head of the cluster" in problem
    own_cluster.command("stop")
    own_cluster.start()
    done = subprocess.run([*words, "resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [int(place) for place, _ in told] == list(range(ITEMS))
    before = sum(known == "True" for _, known in told)
    assert 20 <= before < ITEMS
