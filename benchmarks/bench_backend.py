"""How fast a backend's memory operations move bytes on each Vulkan device, against NumPy's copy."""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

import anyio
import numpy as np
from results import Result, report

from exo.gpu.backends.vulkan import VulkanGPUBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.vocabulary.device import GPUDevice

MIB = 2**20
# Of NumPy in the same run. Within its memory a driver should be near it; what goes there or comes
# back passes through memory that the driver shares with us, so it is copied twice.
TARGETS = {"copy": 0.5, "write": 0.25, "read": 0.25}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="of each, interleaved (%(default)s)")
    parser.add_argument("--mib", type=int, default=256, help="size of a piece (%(default)s)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    backend = VulkanGPUBackend()
    if not backend.find():
        sys.exit("the benchmark needs a Vulkan device")
    rows = [
        result
        for device in backend.list_devices()
        for result in anyio.run(compared, backend, device, options.mib * MIB, options.runs)
    ]
    anyio.run(backend.shutdown)
    return report("backend", rows, as_json=options.json)


async def compared(
    backend: VulkanGPUBackend, device: GPUDevice, size: int, runs: int
) -> list[Result]:
    """GB/s (10**9 bytes a second, each counted once) of the operations and of NumPy."""
    data = np.random.default_rng(0).bytes(size)
    here, there = np.frombuffer(data, dtype=np.uint8), np.empty(size, dtype=np.uint8)
    first = await backend.allocate(device.device_id, size)
    second = await backend.allocate(device.device_id, size)
    read = b""

    async def write() -> None:
        await backend.copy_to_device(data, first)
        await backend.synchronize(device.device_id)

    async def copy() -> None:
        await backend.copy_device_to_device(first, second, size)
        await backend.synchronize(device.device_id)

    async def read_back() -> None:
        nonlocal read
        read = await backend.copy_from_device(second, 0, size)

    async def numpy_copy() -> None:
        np.copyto(there, here)

    async def numpy_bytes() -> None:
        here.tobytes()  # fresh memory, as a read gives it

    seconds: dict[str, list[float]] = {}
    for turn in range(runs + 1):  # the first warms up
        steps = {"write": write, "copy": copy, "read": read_back}
        steps |= {"copyto": numpy_copy, "tobytes": numpy_bytes}
        for name, step in steps.items():
            seconds.setdefault(name, []).append(await timed(step))
        if read != data:
            sys.exit(f"{device.device_id}: what came back is not what was written (run {turn})")
    for handle in (first, second):
        await backend.deallocate(handle)
    rates = {name: rate(figures, size) for name, figures in seconds.items()}
    peers = {"copy": "copyto", "write": "copyto", "read": "tobytes"}
    return [
        Result(
            metric=f"{name} on {device.name.split(' ')[0]}, GB/s",
            ours=rates[name],
            peer=rates[peers[name]],
            peer_name=f"NumPy's {peers[name]}",
            peer_version=np.__version__,
            value=rates[name] / rates[peers[name]],
            target=target,
            better="higher",
            n=runs,
        )
        for name, target in TARGETS.items()
    ]


async def timed(step: Callable) -> float:
    started = time.perf_counter()
    await step()
    return time.perf_counter() - started


def rate(seconds: list[float], size: int) -> float:
    return size / median(seconds[1:]) / 1e9


if __name__ == "__main__":
    sys.exit(main())
