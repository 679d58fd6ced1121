"""The node agent on its short road: devices, samples, leases and slots of this machine."""

from __future__ import annotations

import json
import os
import queue

import pytest

from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import AbilityMissing, BackendError, NoSuchDevice
from exo.gpu.vocabulary.job import SlotIdle, SlotOutcomes, SlotReady, Work
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Health

GIB = 2**30
WAIT_SECONDS = 30


def entry(device_id: str, **more):
    return {
        "device_id": device_id,
        "name": "Card",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "memory_bytes": 8 * GIB,
        "sample": {"memory_total_bytes": 8 * GIB, "memory_used_bytes": GIB},
    } | more


@pytest.fixture
def box(tmp_path):
    """Writes the script of a machine and opens a node on it."""
    nodes = []

    def open_node(*devices):
        path = tmp_path / "box.json"
        path.write_text(json.dumps({"devices": list(devices)}))
        nodes.append(LocalNode(dict(os.environ) | {"EXO_GPU_FAKE": str(path)}))
        return nodes[-1]

    yield open_node
    for node in nodes:
        node.close()


def test_a_verdict_needs_no_watch(box):
    """Rule: without a watch a device is judged by its newest sample alone, as in a snapshot."""
    node = box(entry("cuda:0", sample={"temperature_celsius": 95.0}))
    assert node.verdict("cuda:0").health is Health.OK  # no sample yet
    (state,) = node.snapshot().devices
    verdict = node.verdict("cuda:0")
    assert (verdict.health, "; ".join(verdict.reasons)) == (state.health, state.health_reason)
    assert verdict.health is Health.DEGRADED


def test_a_snapshot_has_fresh_samples_and_live_leases(box):
    node = box(entry("cuda:0"), entry("cuda:1"))
    grant = node.acquire(Request(memory_bytes=2 * GIB))
    first, second = node.snapshot().devices
    assert first.sample.memory_used_bytes == GIB
    assert first.sample_age_seconds >= 0
    assert [lease.lease_id for lease in first.leases] == list(grant.lease_ids)
    assert first.leases[0].used_before_bytes == GIB
    assert second.leases == ()
    node.release(grant.lease_ids[0])
    node.release(grant.lease_ids[0])
    assert node.snapshot().devices[0].leases == ()


def test_one_device_that_cannot_be_read_touches_no_other(box):
    node = box(entry("cuda:0", fail="it fell off the bus"), entry("cuda:1"))
    lost, fine = node.snapshot().devices
    assert (lost.health, lost.sample) == (Health.FAILED, None)
    assert "fell off the bus" in lost.health_reason
    assert "fell off the bus" in node.sample_failures["cuda:0"]
    assert fine.health is Health.OK
    assert node.acquire(Request()).decision.chosen == ("cuda:1",)


def test_a_slot_runs_commands_under_its_lease(box):
    node = box(entry("cuda:0"))
    events = queue.SimpleQueue()
    grant = node.acquire(Request())
    slot = node.open_slot(grant.lease_ids[0], None, events.put)
    assert isinstance(events.get(timeout=WAIT_SECONDS), SlotReady)
    node.submit(slot, Work(work_id=0, items=(0,), command="echo $EXO_GPU_FAKE_VISIBLE"))
    outcomes = events.get(timeout=WAIT_SECONDS)
    assert isinstance(outcomes, SlotOutcomes)
    assert outcomes.outcomes[0].stdout == b"cuda:0\n"
    assert isinstance(events.get(timeout=WAIT_SECONDS), SlotIdle)
    node.close_slots((slot,))
    node.close_slots((slot,))
    assert node.snapshot().devices[0].leases == ()


def test_closing_the_node_ends_its_slots_and_leases(box):
    node = box(entry("cuda:0"))
    events = queue.SimpleQueue()
    grant = node.acquire(Request())
    slot = node.open_slot(grant.lease_ids[0], None, events.put)
    node.submit(slot, Work(work_id=0, items=(0,), command="sleep 600"))
    node.close()
    node.close()
    assert box(entry("cuda:0")).snapshot().devices[0].leases == ()


def test_an_environment_is_for_known_devices(box):
    node = box(entry("cuda:0"))
    assert node.environment(("cuda:0",))["EXO_GPU_FAKE_VISIBLE"] == "cuda:0"
    with pytest.raises(NoSuchDevice, match="cuda:3"):
        node.environment(("cuda:3",))


def test_what_a_backend_cannot_do_is_said(tmp_path):
    """A vendor whose devices cannot be pinned is found, and refused for work by name."""
    from exo.gpu.backend import GPUBackend
    from exo.gpu.vocabulary.device import GPUDevice

    class Bare(GPUBackend):
        name = "bare"

        def find(self):
            return [GPUDevice("bare:0", "Bare", "Nobody", "bare")]

    service = GPUDiscoveryService(backends={"bare": Bare()})
    with LocalNode(service=service) as node:
        (state,) = node.snapshot().devices
        assert state.sample is None
        with pytest.raises(AbilityMissing, match="bare"):
            node.environment(("bare:0",))


def test_devices_of_two_backends_cannot_share_one_process(tmp_path):
    from exo.gpu.backends.fake import FakeBackend

    one = FakeBackend({"devices": [entry("cuda:0")]})
    two = FakeBackend({"devices": [entry("cuda:1", backend="other")]})
    two.name = "other"
    service = GPUDiscoveryService(backends={"fake": one, "other": two})
    with LocalNode(service=service) as node, pytest.raises(BackendError, match=r"cuda:0.*cuda:1"):
        node.environment(("cuda:0", "cuda:1"))


def test_where_the_leases_are_is_said(box, state_folder):
    assert box(entry("cuda:0")).store_place.path == state_folder
