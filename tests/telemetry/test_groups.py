"""Aggregates of groups: as a plain loop says, a shared pool once, stale devices in no figure."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.scheduling.ledger import free_memory
from exo.gpu.telemetry.collector import TelemetryCollector
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot
from tests.telemetry.collector_model import near, totals

GIB = 2**30
READINGS = ("compute_utilization_percent", "power_watts", "temperature_celsius")


def device(device_id, **facts):
    facts = {"name": "A card", "vendor": "nvidia", "backend": "cuda", **facts}
    return GPUDevice(device_id, **facts)


@st.composite
def machines(draw):
    """Devices of some nodes, several of them on the host's memory, with perhaps a sample."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(list(DeviceClass)))
        one = device(
            f"any:{number}",
            vendor=draw(st.sampled_from(("nvidia", "amd"))),
            backend="cpu" if kind is DeviceClass.HOST else "vulkan",
            device_class=kind,
            node=draw(st.sampled_from(("", "rig1", "rig2"))),
            memory_pool=draw(st.sampled_from(("", "host"))),
            memory_bytes=draw(st.none() | st.integers(0, 9)),
        )
        total = draw(st.none() | st.integers(0, 9))
        used = draw(st.none() | st.integers(0, 9 if total is None else total))
        sample = GPUMetrics(
            one.device_id,
            1.0,
            used,
            total,
            memory_reserved_bytes=draw(st.none() | st.integers(0, 3)),
            **{name: draw(st.none() | st.integers(0, 100).map(float)) for name in READINGS},
        )
        rack = draw(st.sampled_from((None, "r1", "r2")))
        silence = draw(st.sampled_from((None, 0.0, 31.0)))
        found.append((one, sample, {} if rack is None else {"rack": rack}, silence))
    return found


def keepers_shadows(told):
    """Of each pool all but the one that stands for it; by the rule that decisions use."""
    pools = {}
    for one, sample in told:
        pools.setdefault((one.node, one.memory_pool), []).append((one, sample))
    shadows = set()
    for members in pools.values():
        keeper = max(
            members,
            key=lambda member: (
                member[0].device_class is DeviceClass.HOST,
                member[1].memory_total_bytes
                if member[1].memory_total_bytes is not None
                else member[0].memory_bytes or 0,
                member[1].memory_used_bytes is not None,
                member[0].device_id,
            ),
        )
        shadows |= {one.device_id for one, _ in members} - {keeper[0].device_id}
    return shadows


@given(machines())
def test_every_grouping_is_as_a_plain_loop_says(machine):
    """Rule: each group adds up its own fresh samples, and each pool's memory stands once in all."""
    now = [0.0]
    collector = TelemetryCollector(clock=lambda: now[0])
    told = []
    for one, sample, labels, silence in machine:
        collector.describe(one, labels=labels)
        if silence is not None:
            now[0] = 100.0 - silence
            collector.observe(sample)
            told.append((one, sample, labels, silence > 30))
    now[0] = 100.0
    shadows = keepers_shadows([(one, sample) for one, sample, _, stale in told if not stale])
    everything = totals([(sample, stale) for _, sample, _, stale in told], shadows)
    assert near(collector.aggregate().to_dict(), everything)
    for by, key in (
        ("node", lambda one, labels: one.node),
        ("vendor", lambda one, labels: one.vendor),
        ("label", lambda one, labels: labels.get("rack", "")),
    ):
        groups = {}
        for one, sample, labels, stale in told:
            groups.setdefault(key(one, labels), []).append((sample, stale))
        ours = collector.aggregate_by(by, label="rack")
        assert ours.keys() == groups.keys()
        for name, samples in groups.items():
            assert near(ours[name].to_dict(), totals(samples, shadows))
    json.dumps({name: one.to_dict() for name, one in collector.aggregate_by("node").items()})


def test_the_pool_is_that_of_the_ledger():
    """Rule: what is free in a shared pool is the same for a decision and for an aggregate."""
    host = device("cpu:0", backend="cpu", memory_bytes=64 * GIB)
    card = device("vulkan:0", backend="vulkan", memory_pool="host", memory_bytes=32 * GIB)
    samples = [
        GPUMetrics("cpu:0", 1.0, 24 * GIB, 64 * GIB),
        GPUMetrics("vulkan:0", 1.0, 4 * GIB, 32 * GIB),
    ]
    collector = TelemetryCollector(clock=lambda: 0.0)
    states = []
    for one, sample in zip((host, card), samples, strict=True):
        collector.describe(one)
        collector.observe(sample)
        states.append(DeviceState(device=one, sample=sample, sample_age_seconds=0.0))
    found = collector.aggregate()
    assert found.total_memory_bytes == 64 * GIB
    assert (
        found.available_memory_bytes == free_memory(states[0], Snapshot(tuple(states))).free_bytes
    )
    assert collector.get_aggregated_metrics()["used_memory_bytes"] == 24 * GIB
    assert collector.cluster_statistics("memory_used_bytes").mean == 24 * GIB
    assert collector.cluster_statistics("power_watts").count == 0


def test_another_stands_for_the_pool_when_its_keeper_falls_silent():
    """Rule: who stands for a pool is judged anew with every question."""
    now = [0.0]
    collector = TelemetryCollector(clock=lambda: now[0])
    collector.describe(device("cpu:0", backend="cpu"))
    collector.describe(device("vulkan:0", backend="vulkan", memory_pool="host"))
    collector.observe(GPUMetrics("cpu:0", 1.0, 1, 10))
    now[0] = 31.0
    collector.observe(GPUMetrics("vulkan:0", 1.0, 2, 8))
    found = collector.aggregate()
    assert (found.used_memory_bytes, found.total_memory_bytes, found.stale_count) == (2, 8, 1)
    collector.observe(GPUMetrics("cpu:0", 2.0, 1, 10))
    found = collector.aggregate()
    assert (found.used_memory_bytes, found.total_memory_bytes, found.stale_count) == (1, 10, 0)


def test_undescribed_devices_are_a_group_without_a_name_and_their_memory_counts():
    """Rule: without facts a device shares nothing with anyone."""
    collector = TelemetryCollector()
    collector.observe(GPUMetrics("a:0", 1.0, 1, 2))
    collector.observe(GPUMetrics("b:0", 1.0, 1, 2))
    assert collector.aggregate_by("node")[""].total_memory_bytes == 4


def test_facts_outlive_silence_and_end_with_forgetting():
    """Rule: a device pushed out by others comes back to its group; a forgotten one does not."""
    collector = TelemetryCollector(max_devices=1)
    collector.describe(device("cuda:0", node="rig1"))
    sample = GPUMetrics("cuda:0", 1.0, power_watts=5.0)
    collector.observe(sample)
    collector.observe(GPUMetrics("stranger:0", 1.0))
    assert collector.aggregate_by("node").keys() == {""}
    collector.observe(sample)
    assert collector.aggregate_by("node").keys() == {"rig1"}
    collector.forget("cuda:0")
    collector.observe(sample)
    assert collector.aggregate_by("node").keys() == {""}


def test_facts_are_bounded_and_checked():
    """Rule: as many devices may be described as may be known."""
    collector = TelemetryCollector(max_devices=1)
    collector.describe(device("cuda:0"))
    collector.describe(device("cuda:0", node="rig1"))
    with pytest.raises(InvalidValue, match="cuda:1"):
        collector.describe(device("cuda:1"))
    with pytest.raises(InvalidValue, match="GPUDevice"):
        collector.describe("cuda:0")


def test_an_aggregate_is_ready_for_json():
    """Rule: plain values only, and None where nobody said anything."""
    found = TelemetryCollector().aggregate()
    assert found.average_utilization_percent is None
    assert found.average_temperature_celsius is None
    assert found.maximum_temperature_celsius is None
    assert set(found.reporting.values()) == {0}
    assert msgspec.json.decode(msgspec.json.encode(found)) == found.to_dict()
