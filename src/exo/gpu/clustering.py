"""The front door that older callers know: hands on four names that live elsewhere."""

from __future__ import annotations

from exo.gpu.coordination.manager import GPUClusteringManager
from exo.gpu.scheduling.distributor import WorkloadDistributor
from exo.gpu.scheduling.selector import DeviceSelector
from exo.gpu.telemetry.collector import TelemetryCollector

__all__ = [
    "DeviceSelector",
    "GPUClusteringManager",
    "TelemetryCollector",
    "WorkloadDistributor",
]
