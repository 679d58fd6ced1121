"""The four classes as older callers use them: through ``exo.gpu.clustering``, without a GPU."""

from __future__ import annotations

import pytest

from exo.gpu import clustering
from exo.gpu.backend import GPUDevice
from exo.gpu.clustering import (
    DeviceSelector,
    GPUClusteringManager,
    TelemetryCollector,
    WorkloadDistributor,
)
from exo.gpu.telemetry_protocol import DeviceCapabilities, DeviceType, GPUMetrics

FEBRUARY_2024 = 1707043200.0
GB = 1_000_000_000


def card(device_id: str, name: str = "NVIDIA RTX 4090") -> GPUDevice:
    return GPUDevice(
        device_id=device_id,
        name=name,
        vendor="nvidia",
        backend="cuda",
        compute_capability="8.9",
        memory_bytes=24 * GB,
        memory_available=24 * GB,
        compute_units=128,
        tensor_core_count=512,
        max_threads_per_block=1024,
        clock_rate_mhz=2500,
        bandwidth_gbps=936.0,
        support_level="full",
        driver_version="550.90.07",
        backend_name="CUDABackend",
    )


def sample(device_id: str, **readings: float) -> GPUMetrics:
    known = {
        "timestamp": FEBRUARY_2024,
        "memory_used_bytes": 8 * GB,
        "memory_total_bytes": 24 * GB,
        "compute_utilization_percent": 50.0,
        "power_watts": 150.0,
        "temperature_celsius": 65.0,
        "clock_rate_mhz": 2500,
    }
    return GPUMetrics(device_id=device_id, **known | readings)


def candidate(device_id: str, **readings: float) -> tuple[GPUMetrics, DeviceCapabilities]:
    capabilities = DeviceCapabilities(
        device_id=device_id,
        device_type=DeviceType.CUDA,
        device_name="RTX 4090",
        vendor="nvidia",
        compute_units=128,
        memory_bandwidth_gbps=936.0,
        max_memory_bytes=24 * GB,
        driver_version="550.0",
    )
    return sample(device_id, timestamp=1.0, **readings), capabilities


def test_the_file_hands_on_exactly_four_names():
    assert sorted(clustering.__all__) == [
        "DeviceSelector",
        "GPUClusteringManager",
        "TelemetryCollector",
        "WorkloadDistributor",
    ]


class TestInitialisationAndRegistration:
    @pytest.mark.anyio
    async def test_a_manager_begins_empty(self):
        manager = GPUClusteringManager()
        assert len(manager._devices) == 0
        await manager.shutdown()

    @pytest.mark.anyio
    async def test_a_registered_device_is_found_as_it_was(self):
        manager = GPUClusteringManager()
        manager.register_device(card("cuda:0"))
        assert len(manager._devices) == 1
        assert manager.get_device("cuda:0") == card("cuda:0")
        await manager.shutdown()

    @pytest.mark.anyio
    async def test_several_devices_are_kept(self):
        manager = GPUClusteringManager()
        for index in range(3):
            manager.register_device(card(f"cuda:{index}", f"RTX 409{index}"))
        assert len(manager._devices) == 3
        await manager.shutdown()


class TestDeviceSelection:
    def test_by_memory_the_emptier_one_is_best(self):
        selector = DeviceSelector(
            {
                "cuda:0": candidate("cuda:0"),
                "cuda:1": candidate(
                    "cuda:1",
                    memory_used_bytes=20 * GB,
                    compute_utilization_percent=80.0,
                    temperature_celsius=75.0,
                ),
            }
        )
        assert selector.select_best_device() == "cuda:0"

    def test_the_ranking_carries_scores_within_0_and_1(self):
        ranked = DeviceSelector({"cuda:0": candidate("cuda:0")}).rank_devices()
        assert [device_id for device_id, _ in ranked] == ["cuda:0"]
        assert ranked[0][1] == pytest.approx(0.6 * 16 / 24 + 0.4 * 0.5)

    def test_a_memory_requirement_is_met_or_the_answer_is_none(self):
        """24 GB of which 20 are used hold 3 more, and neither 5 nor 10."""
        selector = DeviceSelector({"cuda:0": candidate("cuda:0", memory_used_bytes=20 * GB)})
        assert selector.select_best_device(min_memory_bytes=3 * GB) == "cuda:0"
        assert selector.select_best_device(min_memory_bytes=5 * GB) is None
        assert selector.select_best_device(min_memory_bytes=10 * GB) is None

    def test_no_devices_no_choice(self):
        assert DeviceSelector({}).select_best_device() is None
        assert DeviceSelector({}).rank_devices() == []


@pytest.mark.anyio
class TestTelemetry:
    async def test_collect(self):
        collector = TelemetryCollector()
        await collector.record_metrics(sample("cuda:0"))
        recorded = collector.get_metrics("cuda:0")
        assert recorded == sample("cuda:0")

    async def test_aggregate(self):
        collector = TelemetryCollector()
        assert collector.get_aggregated_metrics() == {}
        for index in range(3):
            await collector.record_metrics(
                sample(f"cuda:{index}", compute_utilization_percent=30.0 + index * 10)
            )
        found = collector.get_aggregated_metrics()
        assert found["device_count"] == 3
        assert found["total_memory_bytes"] == 72 * GB
        assert found["available_memory_bytes"] == 48 * GB
        assert found["average_utilization_percent"] == 40.0

    async def test_history_is_kept_oldest_first_up_to_its_bound(self):
        collector = TelemetryCollector(max_history=10)
        for index in range(15):
            await collector.record_metrics(sample("cuda:0", timestamp=FEBRUARY_2024 + index))
            kept = min(index + 1, 10)
            assert len(collector.get_metrics_history("cuda:0")) == kept
        times = [one.timestamp - FEBRUARY_2024 for one in collector.get_metrics_history("cuda:0")]
        assert times == list(range(5, 15))


class TestDistribution:
    def test_uniform(self):
        distribution = WorkloadDistributor().distribute_uniform(
            devices=["cuda:0", "cuda:1", "cuda:2"], workload_items=list(range(9))
        )
        assert [len(distribution[f"cuda:{index}"]) for index in range(3)] == [3, 3, 3]

    def test_by_capacity(self):
        distribution = WorkloadDistributor().distribute_by_capacity(
            capacities={"cuda:0": 1.0, "cuda:1": 2.0, "cuda:2": 1.0},
            workload_items=list(range(16)),
        )
        assert [len(distribution[f"cuda:{index}"]) for index in range(3)] == [4, 8, 4]

    def test_under_constraints_nothing_vanishes(self):
        distribution = WorkloadDistributor().distribute_uniform(
            devices=["cuda:0"], workload_items=list(range(15)), max_per_device=5
        )
        assert len(distribution["cuda:0"]) == 5
        assert distribution.unassigned == list(range(5, 15))


@pytest.mark.anyio
class TestIntegration:
    async def test_devices_and_metrics_together(self):
        async with GPUClusteringManager() as manager:
            for index in range(2):
                manager.register_device(card(f"cuda:{index}"))
                await manager.record_metrics(
                    sample(f"cuda:{index}", compute_utilization_percent=30.0 + index * 10)
                )
            assert manager.select_best_device() == "cuda:0"
            assert manager.get_aggregated_metrics()["device_count"] == 2

    async def test_the_manager_distributes(self):
        async with GPUClusteringManager() as manager:
            for index in range(2):
                manager.register_device(card(f"cuda:{index}"))
            distribution = manager.distribute_workload(tasks=list(range(10)), strategy="uniform")
            assert len(distribution) == 2
            assert sum(len(items) for items in distribution.values()) == 10
