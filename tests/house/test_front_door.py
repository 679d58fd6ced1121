"""The public names of exo.gpu, written down a second time."""

import exo.gpu as gpu

NAMES = [
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


def test_public_names_are_these() -> None:
    """Rule: a public name is added or removed on purpose: here, and in the changelog."""
    assert gpu.__all__ == NAMES
