"""gpu.plan_split: this machine's devices as they are now, and how fast each is known to be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exo import gpu
from exo.gpu.backends.datasheets import CARDS, card_of
from exo.gpu.coordination.split_devices import BUFFER_BYTES, HOST_GBPS
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.probe_cache import PairCache, ProbeCache, cache_path, pairs_path
from exo.gpu.vocabulary.errors import InvalidValue, ModelError, NeverAvailable
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.model import ModelLayer, ModelNeeds
from exo.gpu.vocabulary.probe import Measure, PairResult, ProbeResult
from exo.gpu.vocabulary.split import SplitDevice
from exo.gpu.vocabulary.split_network import NetworkLink, NetworkNode, SplitNetwork

GIB = 2**30
DATA = Path(__file__).parents[1] / "data"

BIG = ModelNeeds(
    name="big",
    layers=(ModelLayer(weight_bytes=GIB, cache_bytes_per_token=1024),) * 24,
    context_tokens=8192,
    activation_bytes_per_token=8192,
)


def device(device_id, total=24, used=4, **fields):
    sample = {"memory_used_bytes": used * GIB, "memory_total_bytes": total * GIB}
    return {
        "device_id": device_id,
        "name": "A card",
        "vendor": "somebody",
        "backend": "fake",
        "runtime": device_id.partition(":")[0],
        "hardware_id": f"GPU-{device_id}",
        "memory_bytes": total * GIB,
        "sample": sample,
        **fields,
    }


HOST = device("cpu:0", 64, 4, runtime="cpu", device_class="host")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes these devices the only ones, with no speed measured."""
    monkeypatch.setenv("EXO_GPU_PROBES", str(tmp_path / "probes.json"))

    def write(*devices):
        path = tmp_path / "devices.json"
        path.write_text(json.dumps({"devices": list(devices)}))
        monkeypatch.setenv("EXO_GPU_FAKE", str(path))

    return write


def measure(value):
    return Measure(median=value, lowest=value, highest=value, runs=3)


def probed(name, gbps):
    return ProbeResult(
        device_id=name, hardware_id=f"GPU-{name}", measured_at=1.0, memory_gbps=measure(gbps)
    )


def test_free_memory_and_measured_speed_decide(machine):
    """Rule: what is in use and the buffers are left alone; measured bandwidth goes before stated."""
    machine(device("cuda:0", bandwidth_gbps=500.0), device("cuda:1", bandwidth_gbps=500.0), HOST)
    ProbeCache(cache_path(os.environ)).keep([probed("cuda:0", 300.0)])
    plan = gpu.plan_split(BIG)
    offered = {one.device_id: one for one in plan.devices}
    assert offered["cuda:0"].bandwidth_gbps == 300.0
    assert offered["cuda:0"].usable_bytes == 20 * GIB - BUFFER_BYTES
    assert plan.layer_counts["cuda:1"] == 18
    assert plan.layer_counts["cuda:0"] == 6
    said = " ".join(plan.assumptions)
    assert "cuda:1: 500 GB/s as its driver states" in said
    assert "cuda:0: 300" not in said
    assert {one.device_id: one.reason for one in plan.left_out}["cpu:0"].startswith("of another")


def test_measured_links_are_used(machine):
    """Rule: what a probe found between two devices stands in the place of what is assumed."""
    machine(device("cuda:0", bandwidth_gbps=500.0), device("cuda:1", bandwidth_gbps=500.0))
    pairs = [
        PairResult(
            source=a,
            target=b,
            source_hardware_id=f"GPU-{a}",
            target_hardware_id=f"GPU-{b}",
            measured_at=1.0,
            gbps=measure(0.001),
        )
        for a, b in (("cuda:0", "cuda:1"), ("cuda:1", "cuda:0"))
    ]
    slow_before = gpu.plan_split(BIG)
    PairCache(pairs_path(os.environ)).keep(pairs)
    slow = gpu.plan_split(BIG)
    assert slow.shares[0].hop_seconds == pytest.approx(8192 / 1e6, rel=0.01)
    assert slow_before.shares[0].hop_seconds < 1e-4
    assert any("links" in one for one in slow_before.assumptions)
    assert not any("links" in one for one in slow.assumptions)


def test_a_datasheet_is_an_assumption_that_is_said(machine):
    """Rule: a card that nobody measured has its vendor's figures, and the plan says so."""
    machine(device("cuda:0", total=24, name="NVIDIA GeForce RTX 3090"))
    plan = gpu.plan_split(BIG, context=1, all_devices=True, buffer=0)
    assert plan.devices[0].bandwidth_gbps == 936
    assert plan.devices[0].compute_gflops == pytest.approx(71_200)
    assert any("datasheet of the RTX 3090" in one for one in plan.assumptions)


def test_a_device_without_a_bandwidth_is_an_error_that_says_what_to_do(machine):
    """Rule: nobody's guess; a stated bandwidth or other devices help."""
    machine(device("cuda:0"), device("cuda:1", bandwidth_gbps=500.0, total=48))
    with pytest.raises(InvalidValue, match="exo-gpu probe") as caught:
        gpu.plan_split(BIG)
    assert "cuda:0" in str(caught.value)
    assert gpu.plan_split(BIG, ["cuda:1"]).layer_counts == {"cuda:1": 24}
    assert gpu.plan_split(BIG, bandwidths={"cuda:0": 900.0}).layer_counts["cuda:0"] == 18
    with pytest.raises(InvalidValue, match="cuda:7"):
        gpu.plan_split(BIG, bandwidths={"cuda:7": 900.0})


def test_the_hosts_own_memory_is_assumed_at_its_least(machine):
    """Rule: a machine without a card still gets a plan, and what is assumed is said."""
    machine(HOST)
    plan = gpu.plan_split(DATA / "tiny.gguf", context=8192)
    assert plan.layer_counts == {"cpu:0": 4}
    assert plan.devices[0].bandwidth_gbps == HOST_GBPS
    assert any("DDR4" in one for one in plan.assumptions)


def test_the_host_takes_layers_on_request(machine):
    """Rule: what does not fit goes to the front, in the machine's memory."""
    machine(device("cuda:0", bandwidth_gbps=500.0), HOST)
    refused = gpu.plan_split(BIG)
    assert not refused.fits
    assert refused.shortage.layers_on_host == 6
    plan = gpu.plan_split(BIG, use_host=True)
    assert plan.layer_counts == {"cpu:0": 6, "cuda:0": 18}


def test_devices_that_may_not_be_used_are_left_out(machine):
    """Rule: another runtime, a shared pool, a broken card: each with its reason."""
    machine(
        device("cuda:0", total=48, bandwidth_gbps=500.0),
        device("rocm:0", bandwidth_gbps=500.0),
        device("cuda:1", bandwidth_gbps=500.0, memory_pool="GPU-cuda:0"),
    )
    plan = gpu.plan_split(BIG, runtime="cuda")
    reasons = {one.device_id: one.reason for one in plan.left_out}
    assert "runtime rocm" in reasons["rocm:0"]
    assert "shares its memory with cuda:0" in reasons["cuda:1"]
    assert {one.device_id for one in plan.devices} == {"cuda:0"}


def test_a_cordoned_device_gets_no_layers(machine):
    """Rule: what is kept out of scheduling is kept out of a split, with the reason."""
    machine(device("cuda:0", total=48, bandwidth_gbps=500.0), device("cuda:1", bandwidth_gbps=9e3))
    cordon = Cordon(
        hardware_id="GPU-cuda:1", device_id="cuda:1", why="a loud fan", by="me", since=1.0
    )
    with LocalNode() as node:
        node.put_cordon(cordon)
        plan = gpu.plan_split(BIG, node=node)
    assert {one.device_id: one.reason for one in plan.left_out} == {
        "cuda:1": "it is cordoned: a loud fan"
    }


def test_without_a_lease_store_what_is_in_use_counts(machine, tmp_path, monkeypatch, caplog):
    """Rule: a split takes nothing, so that a store that cannot be used is only told."""
    machine(device("cuda:0", total=48, bandwidth_gbps=500.0))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXO_GPU_STATE", str(tmp_path / "file"))
    assert gpu.plan_split(BIG).fits
    assert "leases do not count" in caplog.text


def test_an_engine_of_one_runtime_gets_the_one_with_the_most_room(machine):
    """Rule: of several runtimes the one with the most memory is kept."""
    machine(
        device("cuda:0", total=48, bandwidth_gbps=500.0), device("rocm:0", bandwidth_gbps=900.0)
    )
    plan = gpu.plan_split(BIG, one_runtime=True)
    assert {one.runtime for one in plan.devices} == {"cuda"}
    plan = gpu.plan_split(BIG, runtimes=frozenset({"cuda"}))
    assert "no word for runtime rocm" in plan.left_out[-1].reason
    with pytest.raises(NeverAvailable, match="no word for runtime"):
        gpu.plan_split(BIG, runtimes=frozenset({"xpu"}))


def test_a_name_that_no_device_has_is_never_there(machine):
    """Rule: as everywhere."""
    machine(device("cuda:0", bandwidth_gbps=500.0))
    with pytest.raises(NeverAvailable, match="cuda:9"):
        gpu.plan_split(BIG, ["cuda:9"])


def test_devices_can_be_given(machine):
    """Rule: a box that is not here is planned for with its figures alone."""
    given = [SplitDevice(device_id="a", free_bytes=30 * GIB, bandwidth_gbps=100.0)]
    assert gpu.plan_split(BIG, given).layer_counts == {"a": 24}
    with pytest.raises(InvalidValue, match="not both"):
        gpu.plan_split(BIG, [given[0], "cuda:0"])


def test_a_network_is_planned_by_its_flow():
    """Rule: nodes with tables get a placement, and its flow."""
    net = SplitNetwork(
        nodes=(NetworkNode(name="a", tokens_per_second=(5.0, 2.0)),),
        links=(
            NetworkLink(source="source", target="a", bytes_per_second=1e9),
            NetworkLink(source="a", target="sink", bytes_per_second=1e9),
        ),
        layer_count=2,
        activation_bytes_per_token=8,
    )
    plan = gpu.plan_split(None, net)
    assert plan.placement == {"a": (0, 2)}
    assert plan.tokens_per_second == pytest.approx(2.0)
    assert plan.gap == pytest.approx(0.0, abs=1e-6)


def test_the_context_is_that_of_the_model_at_most(machine):
    """Rule: a context beyond what the model was made for is refused; without one 4096 count."""
    machine(device("cuda:0", total=48, bandwidth_gbps=500.0))
    with pytest.raises(InvalidValue, match="at most 8192 tokens"):
        gpu.plan_split(BIG, context=8193)
    assert gpu.plan_split(BIG).context_tokens == 4096
    with pytest.raises(ModelError, match="No such file"):
        gpu.plan_split("nowhere.gguf")
    with pytest.raises(InvalidValue, match="model"):
        gpu.plan_split(None)


class TestDatasheets:
    def test_there_are_enough_and_each_has_its_source(self):
        """Rule: at least 30 real cards, each once, with memory, bandwidth, compute and a source."""
        assert len(CARDS) >= 30
        assert len({card.name for card in CARDS}) == len(CARDS)
        for card in CARDS:
            assert len(card.source.split()) > 1  # the title of a document
            assert 4 <= card.memory_gib <= 300
            assert 100 <= card.bandwidth_gbps <= 10_000
            assert 5 <= card.fp16_tflops <= 2000

    @pytest.mark.parametrize(
        ("name", "memory_gib", "card"),
        [
            ("NVIDIA GeForce RTX 3090", 24, "RTX 3090"),
            ("NVIDIA GeForce RTX 3090 Ti", 24, "RTX 3090 Ti"),
            ("NVIDIA GeForce RTX 3060 Laptop GPU", 6, None),
            ("NVIDIA GeForce RTX 4080 SUPER", 16, None),
            ("NVIDIA A100-SXM4-80GB", 80, "A100 SXM4 80GB"),
            ("Tesla V100-PCIE-16GB", 16, "V100 PCIe 16GB"),
            ("Tesla T4", 15, "T4"),
            ("NVIDIA L40S", 45, "L40S"),
            ("NVIDIA L4", 22, "L4"),
            ("NVIDIA RTX 6000 Ada Generation", 48, "RTX 6000 Ada"),
            ("AMD Radeon RX 7900 XTX", 24, "Radeon RX 7900 XTX"),
            ("AMD Instinct MI300X", 192, "Instinct MI300X"),
            ("Intel(R) Arc(TM) A770 Graphics", 16, "Arc A770"),
            ("llvmpipe (LLVM 15.0.6, 256 bits)", None, None),
        ],
    )
    def test_drivers_names_mean_cards(self, name, memory_gib, card):
        """Rule: the names that drivers give are known, and a near one is no other card."""
        found = card_of(name, None if memory_gib is None else memory_gib * GIB)
        assert (found.name if found else None) == card
