"""Whole workflows of the manager: register, hear, aggregate, choose, split; on any vendor's cards."""

from __future__ import annotations

import json

import pytest

from exo.gpu.backend import GPUDevice
from exo.gpu.clustering import GPUClusteringManager
from exo.gpu.telemetry_protocol import (
    DeviceRegistration,
    DeviceType,
    GPUMetrics,
    Heartbeat,
    TelemetryProtocol,
)

GB = 1_000_000_000
FEBRUARY_2024 = 1707043200.0

pytestmark = pytest.mark.anyio


@pytest.fixture
async def manager():
    async with GPUClusteringManager() as opened:
        yield opened


def card(device_id: str, name: str, memory: int = 24 * GB) -> GPUDevice:
    nvidia = device_id.startswith("cuda")
    return GPUDevice(
        device_id=device_id,
        name=name,
        vendor="nvidia" if nvidia else "amd",
        backend="cuda" if nvidia else "rocm",
        compute_capability="8.9" if nvidia else "gfx90a",
        memory_bytes=memory,
        memory_available=memory,
        compute_units=128,
        tensor_core_count=512,
        max_threads_per_block=1024,
        clock_rate_mhz=2500,
        bandwidth_gbps=936.0,
        support_level="full",
        driver_version="550.90.07",
        backend_name="CUDABackend" if nvidia else "ROCmBackend",
    )


def sample(device_id: str, used: int, **readings: float) -> GPUMetrics:
    known = {
        "timestamp": FEBRUARY_2024,
        "memory_total_bytes": 24 * GB,
        "compute_utilization_percent": 30.0,
        "power_watts": 150.0,
        "temperature_celsius": 65.0,
        "clock_rate_mhz": 2500,
    }
    return GPUMetrics(device_id=device_id, memory_used_bytes=used, **known | readings)


async def test_full_workflow_with_three_devices(manager):
    for index, name in enumerate(["RTX 4090", "RTX 4080", "RTX 3090"]):
        manager.register_device(card(f"cuda:{index}", name))
        await manager.record_metrics(
            sample(
                f"cuda:{index}",
                (8 + index) * GB,
                compute_utilization_percent=30.0 + index * 10,
                power_watts=150.0 + index * 10,
            )
        )
    assert [one.name for one in manager.list_devices()] == ["RTX 4090", "RTX 4080", "RTX 3090"]
    found = manager.get_aggregated_metrics()
    assert found["device_count"] == 3
    assert found["total_memory_bytes"] == 72 * GB
    assert found["used_memory_bytes"] == 27 * GB
    assert found["total_power_watts"] == 480.0
    assert manager.select_best_device() == "cuda:0"
    distribution = manager.distribute_workload(tasks=list(range(30)), strategy="uniform")
    assert [len(items) for items in distribution.values()] == [10, 10, 10]
    assert distribution.unassigned == []


async def test_heterogeneous_cuda_and_rocm(manager):
    manager.register_device(card("cuda:0", "NVIDIA RTX 4090"))
    manager.register_device(card("rocm:0", "AMD MI250X", 64 * GB))
    await manager.record_metrics(sample("cuda:0", 20 * GB))
    await manager.record_metrics(sample("rocm:0", 4 * GB, memory_total_bytes=64 * GB))
    assert manager.get_aggregated_metrics()["device_count"] == 2
    assert manager.get_capabilities("rocm:0").device_type is DeviceType.ROCM
    assert manager.select_best_device() == "rocm:0"
    assert manager.select_best_device(min_memory_bytes=40 * GB) == "rocm:0"
    assert manager.select_best_device(min_memory_bytes=61 * GB) is None
    split = manager.distribute_workload(list(range(4)))
    assert split == {"cuda:0": [0, 1], "rocm:0": [2, 3]}


async def test_both_distribution_strategies(manager):
    for index in range(3):
        manager.register_device(card(f"cuda:{index}", f"Device {index}"))
    tasks = list(range(12))
    uniform = manager.distribute_workload(tasks=tasks, strategy="uniform")
    assert [len(uniform[f"cuda:{index}"]) for index in range(3)] == [4, 4, 4]
    weighed = manager.distribute_workload(
        tasks=tasks,
        strategy="capacity",
        capacities={"cuda:0": 1.0, "cuda:1": 2.0, "cuda:2": 1.0},
    )
    assert [len(weighed[f"cuda:{index}"]) for index in range(3)] == [3, 6, 3]
    by_default = manager.distribute_workload(tasks=tasks, strategy="capacity")
    assert by_default == uniform


async def test_selection_with_constraints(manager):
    for index in range(2):
        manager.register_device(card(f"cuda:{index}", f"Device {index}"))
    await manager.record_metrics(sample("cuda:0", 4 * GB))
    await manager.record_metrics(
        sample("cuda:1", 22 * GB, compute_utilization_percent=80.0, temperature_celsius=85.0)
    )
    assert manager.select_best_device(min_memory_bytes=5 * GB) == "cuda:0"
    assert manager.select_best_device(min_memory_bytes=21 * GB) is None


async def test_from_the_wire_to_a_choice(manager):
    """What another machine sends as text is enough to register, hear, refuse and choose."""
    cards = {"rig2/cuda:0": 4 * GB, "rig2/rocm:0": 2 * GB}
    for device_id, used in cards.items():
        device = card(device_id.removeprefix("rig2/"), "a card")
        manager.register_device(GPUDevice(device_id, "a card", device.vendor, device.backend))
        sent = [
            TelemetryProtocol.create_registration_message(
                DeviceRegistration("rig2", 5000, device_id, manager.get_capabilities(device_id))
            ),
            TelemetryProtocol.create_heartbeat_message(
                Heartbeat(device_id, sample(device_id, used), 5.0)
            ),
        ]
        first, second = (json.loads(TelemetryProtocol.serialize_message(one)) for one in sent)
        joined = TelemetryProtocol.parse_registration(first["payload"])
        assert joined.capabilities == manager.get_capabilities(device_id)
        await manager.record_heartbeat(TelemetryProtocol.parse_heartbeat(second["payload"]))
    assert manager.select_best_device(3 * GB) == "rig2/rocm:0"
    trouble = Heartbeat("rig2/rocm:0", None, 6.0, is_available=False, error_message="reset needed")
    message = TelemetryProtocol.serialize_message(
        TelemetryProtocol.create_heartbeat_message(trouble)
    )
    heard = TelemetryProtocol.deserialize_message(message)
    await manager.record_heartbeat(TelemetryProtocol.parse_heartbeat(heard["payload"]))
    assert manager.select_best_device(3 * GB) == "rig2/cuda:0"
