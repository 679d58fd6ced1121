"""The interface for programs: what each route tells of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families


def test_devices_tells_what_is_and_how_it_is(client):
    """Rule: a device has its facts, its newest sample and health; unknown is null with a reason."""
    told = client.get("/api/v1/devices").json()
    assert [one["device_id"] for one in told["devices"]] == ["cuda:0", "cuda:1", "rocm:0", "cpu:0"]
    hot = told["devices"][1]
    assert hot["health"] == "degraded"
    assert "hot" in hot["health_reason"]
    amd = told["devices"][2]["sample"]
    assert amd["compute_utilization_percent"] is None
    assert amd["missing_reasons"]["compute_utilization_percent"] == "not in the script"
    assert told["at"] == pytest.approx(time.time(), abs=3600)


@pytest.mark.parametrize("name", ["cuda:0", "GPU-7d9f0c1e-5a3b-4c8d-9e2f-1b6a0d4c8e35"])
def test_a_device_is_found_by_either_id(client, name):
    """Rule: a device is named by its label or by its hardware id."""
    assert client.get(f"/api/v1/devices/{name}").json()["device_id"] == "cuda:0"


RIG = {
    "device_id": "rig2/cuda:0",
    "name": "A card",
    "vendor": "x",
    "backend": "fake",
    "hardware_id": "GPU-of-rig2",
    "node": "rig2",
    "sample": {"temperature_celsius": 41.0},
}


def test_a_device_of_another_node_is_found_by_its_whole_id(serve, write_machine):
    """Rule: an id with a slash is one id on every route, encoded or not."""
    service = serve(machine=write_machine(RIG))
    with service.client() as client:
        service.until_ready(client)
        for name in ("rig2/cuda:0", "rig2%2Fcuda:0", "rig2%2Fcuda%3A0", "GPU-of-rig2"):
            assert client.get(f"/api/v1/devices/{name}").json()["node"] == "rig2"
            past = client.get(
                f"/api/v1/history/{name}", params={"metric": "temperature_celsius"}
            ).json()
            assert past["device"]["device_id"] == "rig2/cuda:0"
            assert 41.0 in past["series"][0]["mean"]
        for name in ("rig2/cuda:1", "rig2", "rig2/", "/cuda:0", "cuda:0"):
            assert client.get(f"/api/v1/devices/{name}").status_code == 404
        question = {"devices": ["rig2/cuda:0"]}
        assert client.post("/api/v1/explain", json=question).json()["chosen"] == ["rig2/cuda:0"]
        assert client.get("/api/v1/events", params={"device": "rig2/cuda:0"}).status_code == 200
        info = client.get("/metrics").text
        assert 'uuid="GPU-of-rig2",node="rig2",device="rig2/cuda:0"' in info


def test_a_hardware_id_of_several_devices_is_not_guessed_at(serve, write_machine):
    """Rule: what is called alike on two nodes is named by its whole id; the answer lists them."""
    other = {**RIG, "device_id": "rig3/cuda:0", "node": "rig3"}
    service = serve(machine=write_machine(RIG, other))
    with service.client() as client:
        service.until_ready(client)
        answer = client.get("/api/v1/devices/GPU-of-rig2")
        assert answer.status_code == 404
        assert "rig2/cuda:0, rig3/cuda:0" in answer.json()["detail"]
        assert client.get("/api/v1/devices/rig3/cuda:0").json()["node"] == "rig3"


def test_head_is_get_without_what_is_in_it(client):
    """Rule: HEAD has status, kind and length of the answer to GET, and no body, and it ends."""
    for path in ("/", "/api/v1/devices/cuda:0", "/-/healthy", "/api/v1/stream"):
        head = client.head(path)
        assert head.status_code == 200
        assert head.content == b""
        assert "content-security-policy" in head.headers
    whole = client.get("/assets/app.js", headers={"accept-encoding": "identity"})
    head = client.head("/assets/app.js", headers={"accept-encoding": "identity"})
    for name in ("content-length", "content-type"):
        assert head.headers[name] == whole.headers[name]
    assert client.head("/api/v1/devices/nobody").status_code == 404
    assert client.head("/api/v1/explain").status_code == 405
    assert "HEAD" in client.delete("/api/v1/devices").headers["allow"]


def test_a_question_without_a_policy_is_asked_by_the_one_that_is_set(serve):
    """Rule: explain decides as 'exo-gpu select' would here; one that is named holds all the same."""
    service = serve(EXO_GPU_POLICY="coolest")
    with service.client() as client:
        service.until_ready(client)
        answer = client.post("/api/v1/explain", json={}).json()
        selected = subprocess.run(
            [sys.executable, "-m", "exo.gpu", "select", "--json"],
            env=service.environ,
            capture_output=True,
            check=True,
        )
        assert answer["request"]["policy"] == "coolest"
        assert answer["chosen"] == json.loads(selected.stdout)["chosen"]
        named = client.post("/api/v1/explain", json={"policy": "balanced"}).json()
        assert named["request"]["policy"] == "balanced"
        assert client.get("/api/v1/policies").json()["default"] == "coolest"


def test_one_machine_is_no_cluster(client):
    """Rule: without a cluster there are no nodes to tell of."""
    assert client.get("/api/v1/nodes").json() == {"nodes": [], "notes": []}


def test_history_comes_in_as_many_points_as_were_asked_for(client):
    """Rule: a span is cut into points; the newest have values, and those before it began have none."""
    now = time.time()
    question = {
        "metric": ["temperature_celsius"],
        "since": now - 60,
        "until": now + 1,
        "points": 10,
    }
    told = client.get("/api/v1/history/cuda:0", params=question).json()
    (series,) = told["series"]
    assert told["device"]["device_id"] == "cuda:0"
    assert len(series["mean"]) == len(series["count"]) == 10
    assert series["mean"][0] is None
    assert 62.0 in series["mean"]


def test_a_span_within_memory_needs_no_disk(served, client):
    """Rule: what the last minutes hold is answered from memory, to the second."""
    while client.get("/api/v1/recent").json()["values"]["cuda:0"][-3:].count(10.0) < 3:
        assert served.process.poll() is None
    since = time.time() - 1
    told = client.get("/api/v1/history/cuda:0", params={"since": since}).json()
    assert {one["source"] for one in told["series"]} == {"memory"}


def test_recent_has_one_list_for_each_device(client):
    """Rule: sparklines have a value or null for each cadence."""
    told = client.get("/api/v1/recent").json()
    assert told["cadence_seconds"] == 1.0
    assert set(told["values"]) == {"cuda:0", "cuda:1", "rocm:0", "cpu:0"}
    assert set(told["values"]["rocm:0"]) == {None}


def test_events_tell_of_health(client):
    """Rule: what happened is told newest first, of one device or of all, and up to a limit."""
    everything = client.get("/api/v1/events").json()["events"]
    assert [one["kind"] for one in everything if one["device_id"] == "cuda:1"] == ["health"]
    assert everything[0]["fields"]["after"] == "degraded"
    assert client.get("/api/v1/events", params={"device": "cpu:0"}).json()["events"] == []
    assert len(client.get("/api/v1/events", params={"limit": 1}).json()["events"]) == 1


def test_aggregates_add_up_by_group(client):
    """Rule: the groups' devices are all devices; a group without a reading has null."""
    told = client.get("/api/v1/aggregates", params={"by": "vendor"}).json()
    assert told["total"]["device_count"] == 4
    assert sum(one["device_count"] for one in told["groups"].values()) == 4
    assert told["groups"]["AMD"]["average_utilization_percent"] is None


def test_processes_say_why_they_are_not_known(client):
    """Rule: no process is not the same as not knowing."""
    told = client.get("/api/v1/processes").json()
    assert told["users"] == []
    assert told["untold"]["cuda:0"] == "its script lists no processes"


def test_a_lease_and_who_waits_for_it_are_told(serve):
    """Rule: leases name holder and device; who waits has a place and a reason for each device."""
    service = serve()
    hold = [sys.executable, "-m", "exo.gpu", "run", "--device", "cuda:0", "--exclusive"]
    holder = subprocess.Popen([*hold, "--", "sleep", "60"], env=service.environ)
    waiter: subprocess.Popen | None = None
    try:
        with service.client() as client:
            while not (leases := client.get("/api/v1/leases").json()["leases"]):
                assert holder.poll() is None
            assert leases[0]["device_id"] == "cuda:0"
            assert leases[0]["exclusive"]
            waiter = subprocess.Popen([*hold, "--wait", "60s", "--", "true"], env=service.environ)
            while not (waiting := client.get("/api/v1/queue").json()["waiting"]):
                assert waiter.poll() is None
            assert waiting[0]["place"] == 1
            assert waiting[0]["reason"].startswith("not now")
            refused = {one["device_id"]: one for one in waiting[0]["refusals"]}
            assert not refused["cuda:0"]["permanent"]
            users = client.get("/api/v1/processes").json()["users"]
            assert users[0]["lease_id"] == leases[0]["lease_id"]
            device = client.get("/api/v1/devices/cuda:0").json()
            assert [one["lease_id"] for one in device["leases"]] == [leases[0]["lease_id"]]
    finally:
        for process in (waiter, holder):
            if process is not None:
                process.kill()
                process.wait()


def test_a_job_is_told_with_its_failures(serve):
    """Rule: a job's items are told with device, times, attempts and the reason of each failure."""
    service = serve()
    words = ["map", "--device", "cpu:0", "--retries", "1", "test {} != b", ":::", "a", "b", "c"]
    subprocess.run([sys.executable, "-m", "exo.gpu", *words], env=service.environ, check=False)
    with service.client() as client:
        while not (jobs := client.get("/api/v1/jobs").json()["jobs"]):
            assert service.process.poll() is None
        job_id = jobs[0]["job_id"]
        story = client.get(f"/api/v1/jobs/{job_id}").json()["summary"]
        assert (story["succeeded"], story["failed"], story["state"]) == (2, 1, "done")
        items = client.get(f"/api/v1/jobs/{job_id}/items").json()
        assert items["total"] >= 3
        failed = client.get(f"/api/v1/jobs/{job_id}/items", params={"failed": True}).json()
        assert {one["failed"][0] for one in failed["tries"]} == {1}
        assert failed["tries"][-1]["final"]
        assert failed["tries"][-1]["exit_status"] == 1
        page = client.get(f"/api/v1/jobs/{job_id}/items", params={"offset": 1, "limit": 1}).json()
        assert page["tries"] == items["tries"][1:2]


def test_policies_tell_their_terms(client):
    """Rule: a policy that a request may name is told with its weights."""
    told = client.get("/api/v1/policies").json()
    assert told["default"] == "balanced"
    names = {one["name"]: one["terms"] for one in told["policies"]}
    assert {"memory", "compute"} <= {term["name"] for term in names["balanced"]}


def test_explain_decides_and_takes_nothing(client):
    """Rule: a request is answered with every term and refusal, and no lease comes of it."""
    answer = client.post("/api/v1/explain", json={"memory": "16GiB"}).json()
    assert answer["chosen"] == ["cuda:0"]
    assert [term["name"] for term in answer["ranking"][0]["terms"]] == ["memory", "compute", "heat"]
    assert "Eligible, best first" in answer["text"]
    assert not answer["never"]
    assert client.get("/api/v1/leases").json()["leases"] == []


def test_explain_says_never(client):
    """Rule: what no device here can hold is told as never, with the largest there is."""
    answer = client.post("/api/v1/explain", json={"memory_bytes": 2**50}).json()
    assert answer["never"]
    assert answer["chosen"] == []
    assert "the largest is" in answer["message"]


def test_metrics_are_what_prometheus_reads(client):
    """Rule: a standard parser reads them; a reading that is not known has no series."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    assert len(families["exo_gpu_up"].samples) == 4
    assert len(families["exo_gpu_utilization_ratio"].samples) == 3


def test_the_service_says_how_well_it_is_informed(client):
    """Rule: version, age of the picture and the place of the history are told."""
    told = client.get("/api/v1/service").json()
    assert told["device_count"] == 4
    assert told["history_recorded"]
    assert client.get("/-/healthy").text == "healthy\n"
