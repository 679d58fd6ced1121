"""Score two devices of different vendors, and see what a missing reading does."""

from exo.gpu.clustering import DeviceSelector
from exo.gpu.telemetry_protocol import DeviceCapabilities, DeviceScorer, DeviceType, GPUMetrics

GIB = 1024**3


def reading(device_id: str, used: int, utilization: float | None, temperature: float) -> GPUMetrics:
    """One sample of a card with 24 GiB; None is a reading that the device cannot give."""
    return GPUMetrics(
        device_id=device_id,
        timestamp=1.0,
        memory_used_bytes=used * GIB,
        memory_total_bytes=24 * GIB,
        compute_utilization_percent=utilization,
        power_watts=None,
        temperature_celsius=temperature,
        clock_rate_mhz=None,
    )


def card(device_id: str, device_type: DeviceType, vendor: str) -> DeviceCapabilities:
    """What never changes about a card."""
    return DeviceCapabilities(
        device_id=device_id,
        device_type=device_type,
        device_name="a card",
        vendor=vendor,
        compute_units=64,
        memory_bandwidth_gbps=900.0,
        max_memory_bytes=24 * GIB,
        driver_version="1.0",
    )


nvidia = card("cuda:0", DeviceType.CUDA, "nvidia")
amd = card("rocm:0", DeviceType.ROCM, "amd")
devices = {
    "cuda:0": (reading("cuda:0", used=6, utilization=50, temperature=60), nvidia),
    "rocm:0": (reading("rocm:0", used=6, utilization=None, temperature=60), amd),
}
for device_id, score in DeviceSelector(devices).rank_devices():
    print(f"{device_id} scores {score:.3f}")

scorer = DeviceScorer()
cool, hot = (reading("cuda:0", used=0, utilization=0, temperature=t) for t in (60, 100))
print(f"idle and cool: {scorer.score_device(cool, nvidia):.2f}")
print(f"idle at 100 C: {scorer.score_device(hot, nvidia):.2f}")
print(f"best with 20 GiB free: {scorer.find_best_device(devices, min_memory_bytes=20 * GIB)}")
