"""Apple: the GPU of a Mac, whose memory is the machine's; used through wgpu, read by macmon."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from exo.gpu.backend import GPUBackend, MemoryHandle, on_daemon_thread
from exo.gpu.backends import host, macmon
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.backends.support import support_level
from exo.gpu.backends.webgpu import WebGPUDevice
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable, ReadingMissing
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_TELEMETRY: tuple[str, ...] = (
    "compute_utilization_percent",
    "power_watts",
    "temperature_celsius",
    "clock_rate_mhz",
    "fan_percent",
)

DEVICE_ID = "metal:0"
"""Macs with Apple's processors have one GPU."""


class MetalBackend(GPUBackend):
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
        self._opened: WebGPUDevice | None = None
        self._lock = threading.Lock()
        self._buffers: BufferTable[Any] = BufferTable()

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

    def compute(
        self,
        device_id: str,
        shader: str,
        inputs: Sequence[bytes],
        output_bytes: int,
        groups: tuple[int, int, int],
    ) -> bytes:
        """Run a WGSL shader once; blocks. See ComputeAbility.

        Raises:
            BackendError: for a shader or sizes that the driver refuses, with its message.

        """
        self.require(device_id)
        return self._open().compute(shader, inputs, output_bytes, groups)

    async def shutdown(self) -> None:
        """Free what is still allocated and close the device; harmless twice."""
        self._buffers.clear()
        opened, self._opened = self._opened, None
        if opened is not None:
            await on_daemon_thread(opened.close, name="exo-gpu-close-metal")
        await super().shutdown()

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Take memory of the driver, never more than the machine has free.

        Raises:
            OutOfDeviceMemory: when the machine or the driver holds no more.

        """
        device = self.require(device_id)

        def room() -> tuple[int | None, int | None]:
            memory = host.memory()
            return memory.total_bytes, memory.used_bytes

        def take() -> MemoryHandle:
            opened = self._open()
            return self._buffers.add(
                device_id,
                size_bytes,
                lambda: opened.create_buffer(size_bytes),
                room,
                pool=device.memory_pool,
            )

        return await on_daemon_thread(take, name="exo-gpu-allocate-metal")

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back at once."""
        buffer = self._buffers.remove(handle)
        await on_daemon_thread(lambda: self._open().free(buffer), name="exo-gpu-free-metal")

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(dst_handle, offset_bytes, len(src))
        await on_daemon_thread(
            lambda: self._open().write(buffer, offset_bytes, src), name="exo-gpu-copy-metal"
        )

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(src_handle, offset_bytes, size_bytes)
        return await on_daemon_thread(
            lambda: self._open().read(buffer, offset_bytes, size_bytes), name="exo-gpu-copy-metal"
        )

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes`` of one piece of memory into another."""
        source = self._buffers.get(src_handle, 0, size_bytes)
        target = self._buffers.get(dst_handle, 0, size_bytes)
        await on_daemon_thread(
            lambda: self._open().copy(source, target, size_bytes), name="exo-gpu-copy-metal"
        )

    async def synchronize(self, device_id: str) -> None:
        """Wait until everything submitted to the device is done."""
        self.require(device_id)
        await on_daemon_thread(lambda: self._open().synchronize(), name="exo-gpu-wait-metal")

    def _open(self) -> WebGPUDevice:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_device()
            return self._opened
