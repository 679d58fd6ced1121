"""Register unlike devices, record what they report, select one and share out work."""

import asyncio

from exo.gpu.backend import GPUDevice
from exo.gpu.clustering import GPUClusteringManager
from exo.gpu.telemetry_protocol import GPUMetrics

GIB = 1024**3


def device(device_id: str, vendor: str, backend: str, memory: int) -> GPUDevice:
    """A device as its backend would describe it."""
    return GPUDevice(device_id, f"{vendor} card", vendor, backend, memory_bytes=memory * GIB)


def sample(device_id: str, used: int, total: int) -> GPUMetrics:
    """What the device reports; it does not know its power and clock."""
    return GPUMetrics(device_id, 1.0, used * GIB, total * GIB, 10.0, None, 55.0, None)


async def main() -> None:
    """The whole life of a manager."""
    async with GPUClusteringManager() as manager:
        manager.register_device(device("cuda:0", "nvidia", "cuda", 24))
        manager.register_device(device("rocm:0", "amd", "rocm", 16))
        await manager.record_metrics(sample("cuda:0", used=20, total=24))
        await manager.record_metrics(sample("rocm:0", used=2, total=16))

        print("for  3 GiB:", manager.select_best_device(min_memory_bytes=3 * GIB))
        print("for 10 GiB:", manager.select_best_device(min_memory_bytes=10 * GIB))
        print("for 40 GiB:", manager.select_best_device(min_memory_bytes=40 * GIB))

        totals = manager.get_aggregated_metrics()
        print("devices:", totals["device_count"])
        print("free GiB:", totals["available_memory_bytes"] // GIB)

        shares = manager.distribute_workload(
            ["a", "b", "c", "d"], strategy="capacity", capacities={"cuda:0": 3.0, "rocm:0": 1.0}
        )
        for device_id, tasks in shares.items():
            print(device_id, "does", ", ".join(tasks))


asyncio.run(main())
