"""The service over a whole cluster: a real process, spoken to over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.request import Request

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

from served import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

ALL = ["head/cuda:0", "rig1/cuda:0", "rig2/cuda:0"]


@pytest.fixture(scope="module")
def service(machines: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of all machines, for all tests of this file."""
    folder = tmp_path_factory.mktemp("service")
    served = Served(folder, "--cluster", cadence=None, RAY_ADDRESS=machines.address)
    yield served
    assert served.stop() == 0
    assert not [one for one in served.lines if "Traceback" in one]


@pytest.fixture
def client(service: Served, until: Callable[..., Any]) -> Iterator[httpx.Client]:
    with service.client() as client:
        until(lambda: client.get("/-/ready").status_code == 200)
        yield client


def ids_of(client: httpx.Client) -> list[str]:
    return [one["device_id"] for one in client.get("/api/v1/devices").json()["devices"]]


def families(client: httpx.Client) -> dict[str, list[Any]]:
    text = client.get("/metrics").text
    return {one.name: one.samples for one in text_string_to_metric_families(text)}


def test_every_route_tells_of_all_machines(
    service: Served, client: httpx.Client, until: Callable[..., Any]
) -> None:
    """Rule: what the service tells of one machine, it tells of all, under their whole names."""
    assert "of a cluster of 3 nodes: head, rig1, rig2" in service.read_until("of a cluster")
    assert "keeping the history in" in service.read_until("history")
    assert ids_of(client) == ALL
    until(
        lambda: all(len(one) > 1 for one in client.get("/api/v1/recent").json()["values"].values())
    )
    for name in ("rig2/cuda:0", "rig2%2Fcuda%3A0", "GPU-of-rig2"):
        device = client.get(f"/api/v1/devices/{name}").json()
        assert (device["device_id"], device["node"]) == ("rig2/cuda:0", "rig2")
        assert device["sample"]["temperature_celsius"] == 40
        past = client.get(f"/api/v1/history/{name}", params={"metric": "temperature_celsius"})
        assert past.json()["device"]["device_id"] == "rig2/cuda:0"
        assert 40.0 in past.json()["series"][0]["mean"]
    nodes = client.get("/api/v1/nodes").json()["nodes"]
    assert [(one["node"], one["alive"]) for one in nodes] == [(n[:-7], True) for n in ALL]
    groups = client.get("/api/v1/aggregates", params={"by": "node"}).json()["groups"]
    assert {name: one["device_count"] for name, one in groups.items()} == dict.fromkeys(
        ("head", "rig1", "rig2"), 1
    )
    told = families(client)
    assert [one.labels["device"] for one in told["exo_gpu_device_info"]] == ALL
    assert {one.labels["node"]: one.value for one in told["exo_gpu_up"]} == dict.fromkeys(
        ("head", "rig1", "rig2"), 1.0
    )
    with client.stream("GET", "/api/v1/stream") as stream:
        lines = (one.removeprefix("data: ") for one in stream.iter_lines())
        samples = next(json.loads(one)["samples"] for one in lines if '"samples"' in one)
        assert {one["device_id"] for one in samples} <= set(ALL)


def test_leases_and_decisions_are_those_of_the_nodes(
    client: httpx.Client, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: a lease that a node granted is told with it, and explain decides over all nodes."""
    with LocalNode(os.environ | machines.environ("rig1")) as local:
        (lease_id,) = local.acquire(Request(exclusive=True)).lease_ids
        found = until(lambda: client.get("/api/v1/leases").json()["leases"])
        assert [(one["lease_id"], one["device_id"]) for one in found] == [(lease_id, "rig1/cuda:0")]
        until(lambda: client.get("/api/v1/devices/rig1/cuda:0").json()["leases"])
        question = {"devices": ["rig1/cuda:0", "rig2/cuda:0"], "exclusive": True}
        answer = client.post("/api/v1/explain", json=question).json()
        assert answer["chosen"] == ["rig2/cuda:0"]
        refused = {one["device_id"]: one["permanent"] for one in answer["refusals"]}
        assert refused["rig1/cuda:0"] is False


def test_a_node_that_is_lost_is_told_with_its_reason_and_comes_back(
    client: httpx.Client, machines: Any, until: Callable[..., Any]
) -> None:
    """Rule: lost devices are missing with a reason, in every place; their past stays."""
    machines.kill("rig2")
    try:
        until(lambda: client.get("/api/v1/devices").json()["missing"])
        assert ids_of(client) == ALL[:2]
        told = client.get("/api/v1/devices").json()
        (missing,) = told["missing"]
        assert missing["device"]["device_id"] == "rig2/cuda:0"
        assert missing["reason"].startswith("its node is lost: ")
        assert any(one.startswith("node rig2 is lost: ") for one in told["notes"])
        assert client.get("/-/ready").status_code == 200
        (gone,) = [one for one in families(client)["exo_gpu_device_missing"] if one.value]
        assert gone.labels["device"] == "rig2/cuda:0"
        standings = {one["node"]: one for one in client.get("/api/v1/nodes").json()["nodes"]}
        assert not standings["rig2"]["alive"]
        assert standings["rig2"]["reason"]
        answer = client.get("/api/v1/devices/rig2/cuda:0")
        assert answer.status_code == 404
        assert "is missing: its node is lost" in answer.json()["detail"]
        past = client.get("/api/v1/history/rig2/cuda:0", params={"metric": "temperature_celsius"})
        assert 40.0 in past.json()["series"][0]["mean"]
        asked = client.post("/api/v1/explain", json={"devices": ["rig2/cuda:0"]}).json()
        assert asked["chosen"] == []
    finally:
        machines.add("rig2")
    until(lambda: ids_of(client) == ALL)
    assert client.get("/api/v1/devices").json()["missing"] == []

    def happened() -> list[Any]:
        found = client.get("/api/v1/events", params={"device": "rig2/cuda:0"}).json()["events"]
        return [one["fields"].get("change") or one["fields"]["after"] for one in reversed(found)]

    until(lambda: len(happened()) >= 4)
    assert sorted(happened()) == ["lost", "lost", "ok", "returned"]


def test_the_service_outlives_what_joins_it_to_the_cluster(
    service: Served, client: httpx.Client, until: Callable[..., Any]
) -> None:
    """Rule: where Ray ends the process that has joined, that is said, and another one joins."""

    def joined() -> psutil.Process | None:
        children = psutil.Process(service.process.pid).children()
        return next((one for one in children if "cluster_teller" in " ".join(one.cmdline())), None)

    before = until(joined)
    before.kill()
    until(lambda: client.get("/-/ready").status_code == 503)
    assert "no node of the cluster answers" in client.get("/-/ready").json()["detail"]
    told = client.get("/api/v1/devices").json()
    assert any("joined anew" in one for one in told["notes"])
    assert {one["device"]["device_id"] for one in told["missing"]} <= set(ALL)
    until(lambda: client.get("/-/ready").status_code == 200)
    until(lambda: ids_of(client) == ALL)
    assert joined() != before


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((), 1, "no cluster answers at 127.0.0.1:1"),
        (("--every", "1s"), 2, "--every is not for --cluster"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    machines: Any, words: tuple[str, ...], status: int, told: str
) -> None:
    """Rule: where no cluster can be joined the service does not begin, and says why."""
    del machines  # its settings of the environment
    command = [sys.executable, "-m", "exo.gpu", "serve", "--port", "0", "--cluster", *words]
    environ = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert told in done.stderr.splitlines()[-1]
    assert "serving" not in done.stderr
    assert "Traceback" not in done.stderr
