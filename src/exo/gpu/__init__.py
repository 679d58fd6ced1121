"""exo.gpu: a pile of unlike GPUs as one machine. The front door; it hands names on lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exo.gpu.backend import GPUBackend, MemoryHandle
    from exo.gpu.clustering import (
        DeviceSelector,
        GPUClusteringManager,
        TelemetryCollector,
        WorkloadDistributor,
    )
    from exo.gpu.coordination.executor import GPUExecutor
    from exo.gpu.coordination.leases import lease
    from exo.gpu.coordination.map_call import map_items as map  # noqa: A004 - its public name
    from exo.gpu.coordination.splitting import plan_split
    from exo.gpu.discovery import GPUDiscoveryService, discover_gpu_devices
    from exo.gpu.execution.pinning import current_device
    from exo.gpu.factory import GPUBackendFactory, detect_available_backends
    from exo.gpu.scheduling.distribution import Distribution
    from exo.gpu.telemetry_protocol import (
        DeviceRegistration,
        DeviceScorer,
        Heartbeat,
        TelemetryProtocol,
    )
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.device import (
        DeviceCapabilities,
        DeviceClass,
        DeviceType,
        GPUDevice,
    )
    from exo.gpu.vocabulary.errors import (
        BackendError,
        ExecutionError,
        ExoGpuError,
        InvalidValue,
        NeverAvailable,
        NoDevice,
        NotNow,
        WorkerDied,
    )
    from exo.gpu.vocabulary.job import DONE_BEFORE
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.request import Request

    __version__: str

# Where each public name lives; a pair is (module, its name there).
_HOMES: dict[str, str | tuple[str, str]] = {
    "BackendError": "vocabulary.errors",
    "DONE_BEFORE": "vocabulary.job",
    "Decision": "vocabulary.decision",
    "DeviceCapabilities": "vocabulary.device",
    "DeviceClass": "vocabulary.device",
    "DeviceRegistration": "telemetry_protocol",
    "DeviceScorer": "telemetry_protocol",
    "DeviceSelector": "clustering",
    "DeviceType": "vocabulary.device",
    "Distribution": "scheduling.distribution",
    "ExecutionError": "vocabulary.errors",
    "ExoGpuError": "vocabulary.errors",
    "GPUBackend": "backend",
    "GPUBackendFactory": "factory",
    "GPUClusteringManager": "clustering",
    "GPUDevice": "vocabulary.device",
    "GPUDiscoveryService": "discovery",
    "GPUExecutor": "coordination.executor",
    "GPUMetrics": "vocabulary.metrics",
    "Heartbeat": "telemetry_protocol",
    "InvalidValue": "vocabulary.errors",
    "MemoryHandle": "backend",
    "NeverAvailable": "vocabulary.errors",
    "NoDevice": "vocabulary.errors",
    "NotNow": "vocabulary.errors",
    "Request": "vocabulary.request",
    "TelemetryCollector": "clustering",
    "TelemetryProtocol": "telemetry_protocol",
    "WorkerDied": "vocabulary.errors",
    "WorkloadDistributor": "clustering",
    "current_device": "execution.pinning",
    "detect_available_backends": "factory",
    "discover_gpu_devices": "discovery",
    "lease": "coordination.leases",
    "map": ("coordination.map_call", "map_items"),
    "plan_split": "coordination.splitting",
}

__all__ = [
    "DONE_BEFORE",
    "BackendError",
    "Decision",
    "DeviceCapabilities",
    "DeviceClass",
    "DeviceRegistration",
    "DeviceScorer",
    "DeviceSelector",
    "DeviceType",
    "Distribution",
    "ExecutionError",
    "ExoGpuError",
    "GPUBackend",
    "GPUBackendFactory",
    "GPUClusteringManager",
    "GPUDevice",
    "GPUDiscoveryService",
    "GPUExecutor",
    "GPUMetrics",
    "Heartbeat",
    "InvalidValue",
    "MemoryHandle",
    "NeverAvailable",
    "NoDevice",
    "NotNow",
    "Request",
    "TelemetryCollector",
    "TelemetryProtocol",
    "WorkerDied",
    "WorkloadDistributor",
    "__version__",
    "current_device",
    "detect_available_backends",
    "discover_gpu_devices",
    "lease",
    "map",
    "plan_split",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOMES:
        home = _HOMES[name]
        module, there = (home, name) if isinstance(home, str) else home
        value = getattr(import_module(f"{__name__}.{module}"), there)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("exo-gpu")
    except PackageNotFoundError:  # a checkout on the path, never installed
        return "0+unknown"
