"""As ``exo-gpu serve``, over a machine of many devices: what ``bench_service.py`` asks."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING

from exo.gpu.backends.host_buffers import HostBufferBackend
from exo.gpu.coordination.monitor import Monitor
from exo.gpu.coordination.overview import Overseer
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.nodes.local import LocalNode
from exo.gpu.service.app import Service
from exo.gpu.service.server import listen, run
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GIB = 2**30


class ManyDevices(HostBufferBackend):
    """Devices that answer at once, each with readings that move."""

    name = "many"

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def find(self) -> list[GPUDevice]:
        """The devices."""
        found = [
            GPUDevice(
                device_id=f"cuda:{number}",
                name="NVIDIA H100 80GB HBM3",
                vendor="NVIDIA",
                backend="many",
                runtime="cuda",
                hardware_id=f"GPU-{number:08}",
                memory_bytes=80 * GIB,
            )
            for number in range(self._count)
        ]
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """A sample of now."""
        now = time.time()
        wave = 0.5 + 0.5 * math.sin(now / 20 + hash(device_id) % 100)
        return GPUMetrics(
            device_id,
            now,
            memory_used_bytes=int(wave * 79 * GIB),
            memory_total_bytes=80 * GIB,
            compute_utilization_percent=100 * wave,
            power_watts=70 + 600 * wave,
            temperature_celsius=30 + 45 * wave,
            clock_rate_mhz=1980.0,
        )

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Nobody works here."""
        del devices, inherited
        return {}

    def hiding(self) -> dict[str, str | None]:
        """Nobody works here."""
        return {}

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        return device.memory_bytes, None


def main() -> None:
    """Serve as many devices as the first argument says; print the port."""
    discovery = GPUDiscoveryService(backends={"many": ManyDevices(int(sys.argv[1]))})
    with (
        LocalNode(service=discovery) as node,
        Monitor(node, history=True) as monitor,
        Overseer(monitor, os.environ) as overseer,
        listen("127.0.0.1", 0) as listening,
    ):
        port = listening.getsockname()[1]
        run(Service(overseer), listening, lambda: print(port, flush=True))


if __name__ == "__main__":
    main()
