"""Apple: the GPU of a Mac, whose memory is the machine's; used through wgpu, read by macmon."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from exo.gpu.backends import host, macmon
from exo.gpu.backends.support import support_level
from exo.gpu.backends.webgpu import WebGPUDevice
from exo.gpu.backends.webgpu_buffers import WebGPUBuffers
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable, ReadingMissing
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.backends.webgpu_speed import WebGPUSpeed

_TELEMETRY: tuple[str, ...] = (
    "compute_utilization_percent",
    "power_watts",
    "temperature_celsius",
    "clock_rate_mhz",
    "fan_percent",
)

DEVICE_ID = "metal:0"
"""Macs with Apple's processors have one GPU."""


class MetalBackend(WebGPUBuffers):
    """The GPU of a Mac.

    ``open_device`` opens it, ``platform`` is Python's name of the operating system, and
    ``telemetry_seconds`` is how long macmon may take.
    """

    name = "metal"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        platform: str = sys.platform,
        open_device: Callable[[], WebGPUDevice] = lambda: WebGPUDevice(api="Metal"),
        telemetry_seconds: float = macmon.DEADLINE_SECONDS,
    ) -> None:
        super().__init__()
        self._environ = environ
        self._platform = platform
        self._open_device = open_device
        self._telemetry_seconds = telemetry_seconds

    def find(self) -> list[GPUDevice]:
        """The one GPU (``system_profiler SPDisplaysDataType``).

        Raises:
            BackendUnavailable: off macOS, or without wgpu.
            BackendError: when there is no Metal device, as in some virtual machines.

        """
        if self._platform != "darwin":
            raise BackendUnavailable(
                f"Metal is Apple's, and this is {self._platform}", "use the vulkan backend"
            )
        opened = self._open()
        device = GPUDevice(
            device_id=DEVICE_ID,
            name=opened.name,
            vendor="Apple",
            backend=self.name,
            memory_bytes=host.memory().total_bytes,
            support_level=support_level(self.name),
            driver_version=opened.driver or None,
            memory_pool=HOST_POOL,
        )
        self._devices = {device.device_id: device}
        return [device]

    def read(self, device_id: str) -> GPUMetrics:
        """Memory of the machine, and what macmon tells where it is installed."""
        self.require(device_id)
        memory = host.memory()
        try:
            environ = os.environ if self._environ is None else self._environ
            told = macmon.sample(environ, seconds=self._telemetry_seconds)
            values, missing = macmon.readings(told)
        except ReadingMissing as reason:
            values, missing = {}, dict.fromkeys(_TELEMETRY, str(reason))
        return GPUMetrics(
            device_id,
            time.time(),
            memory_used_bytes=memory.used_bytes,
            memory_total_bytes=memory.total_bytes,
            **values,
            missing_reasons=missing,
        )

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Nothing: the one GPU needs no choice, and no variable restricts it."""
        del devices, inherited
        return {}

    def hiding(self) -> dict[str, str | None]:
        """Nothing: Metal has no variable that hides its GPU, so other work still sees it."""
        return {}

    def speed(self, device: GPUDevice) -> WebGPUSpeed:
        """What can be timed on the one GPU there is."""
        from exo.gpu.backends.webgpu_speed import WebGPUSpeed

        total, used = self._room(device)
        return WebGPUSpeed(self._open(), free_bytes=total - used)

    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        del device
        return self._open()

    def _room(self, device: GPUDevice) -> tuple[int, int]:
        del device
        memory = host.memory()
        return memory.total_bytes, memory.used_bytes

    def _open(self) -> WebGPUDevice:
        return self._once(DEVICE_ID, self._open_device)
