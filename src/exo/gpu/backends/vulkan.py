"""Any Vulkan device, software drivers included: found by a child process, used through wgpu."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.backend import GPUBackend, MemoryHandle, on_daemon_thread
from exo.gpu.backends import host, vulkan_answers, vulkan_drivers, vulkan_manifests
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.backends.webgpu import AdapterKey, WebGPUDevice
from exo.gpu.backends.webgpu_speed import WebGPUSpeed
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INDEX_VARIABLE = "EXO_GPU_VULKAN_INDEX"
"""Place of the one visible device among those of the one visible driver."""

# Drivers that do not let go by then are left behind.
_CLOSE_SECONDS = 5.0

# Copies between two drivers pass through the machine's memory in pieces of this size.
_PIECE_BYTES = 16 * 2**20


class VulkanGPUBackend(GPUBackend):
    """Every device of every Vulkan driver that the loader would find here."""

    name = "vulkan"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        driver_seconds: float = vulkan_drivers.DRIVER_SECONDS,
    ) -> None:
        super().__init__()
        self._environ = environ
        self._driver_seconds = driver_seconds
        self.answers: dict[str, str] | None = None
        """What the drivers said before, kept by whoever sets it; None: nothing is kept."""
        self._keys: dict[str, tuple[AdapterKey, int]] = {}
        self._heaps: dict[str, tuple[vulkan_drivers.MemoryHeap, ...]] = {}
        self._opened: dict[str, WebGPUDevice] = {}
        self._buffers: BufferTable[Any] = BufferTable()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def find(self) -> list[GPUDevice]:
        """The devices of all drivers (``vulkaninfo --summary``), each once."""
        environ = os.environ if self._environ is None else self._environ
        manifests = vulkan_manifests.universe(environ)
        if not manifests:
            raise BackendUnavailable(
                "no Vulkan driver manifest was found",
                "install a driver, such as Debian's mesa-vulkan-drivers",
            )
        drivers = vulkan_answers.recall_or_ask(
            self.answers,
            manifests,
            environ,
            lambda: vulkan_drivers.ask(manifests, environ, driver_seconds=self._driver_seconds),
        )
        self.remark = "; ".join(
            f"{driver['manifest']} {driver['reason']}" for driver in drivers if "reason" in driver
        )
        self._keys = {}
        only = environ.get(INDEX_VARIABLE, "")
        keys: list[AdapterKey] = []
        found: list[GPUDevice] = []
        self._heaps = {}
        for device, key, heaps in vulkan_drivers.distinct(drivers):
            rank = keys.count(key)
            keys.append(key)
            if only.isdigit() and len(manifests) == 1 and device.driver_index != int(only):
                continue
            device_id = f"vulkan:{len(found)}"
            self._keys[device_id] = (key, rank)
            self._heaps[device_id] = heaps
            found.append(msgspec.structs.replace(device, device_id=device_id))
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """Memory where it is the machine's; Vulkan itself tells nothing of the present."""
        device = self.require(device_id)
        missing = dict.fromkeys(READINGS, "Vulkan does not tell it")
        total, used = self._room(device)
        if total is not None:
            del missing["memory_total_bytes"]
        if used is None:
            missing["memory_used_bytes"] = "Vulkan tells the memory use of this process only"
        else:
            del missing["memory_used_bytes"]
        return GPUMetrics(
            device_id,
            time.time(),
            memory_used_bytes=used,
            memory_total_bytes=total,
            missing_reasons=missing,
        )

    def heaps(self, device_id: str) -> tuple[vulkan_drivers.MemoryHeap, ...]:
        """The memories of a device (``vulkaninfo``), each with one process's budget where told."""
        self.require(device_id)
        return self._heaps[device_id]

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """The device's driver alone, and its place among that driver's devices.

        Programs that do not read the second variable see all devices of the one driver.

        Raises:
            BackendError: when the environment excludes the driver, none is known, or several
                devices are asked for, which no variable of Vulkan's can name.

        """
        if len(devices) > 1:
            names = ", ".join(device.device_id for device in devices)
            raise BackendError(f"Vulkan has no variable that names several devices ({names})")
        device = devices[0]
        if device.driver_manifest is None or device.driver_index is None:
            raise BackendError(f"{device.device_id} has no Vulkan driver manifest")
        named = vulkan_manifests.restriction(inherited)
        if named is not None and device.driver_manifest not in named:
            raise BackendError(
                f"{device.device_id} is hidden: {device.driver_manifest} is not among the "
                f"drivers named in {' or '.join(vulkan_manifests.LISTS)}"
            )
        index = {INDEX_VARIABLE: str(device.driver_index)}
        return {**_drivers(device.driver_manifest), **index}

    def hiding(self) -> dict[str, str | None]:
        """A manifest that names no driver; the loader then finds none and says so."""
        return _drivers(vulkan_manifests.NOTHING)

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
        return self._open(device_id).compute(shader, inputs, output_bytes, groups)

    def speed(self, device: GPUDevice) -> WebGPUSpeed:
        """What can be timed on a device; for the process that measures, pinned to it.

        There the drivers are not listed again: the device is known by its place among those of
        the one visible driver, and by its name where that leaves a doubt.

        Raises:
            BackendError: when it cannot be told which adapter it is, or it does not open.

        """
        if device.device_id in self._keys:
            opened = self._open(device.device_id)
        else:
            opened = WebGPUDevice(device.driver_index or 0)
            if opened.choices > 1 and opened.name != device.name:
                raise BackendError(f"{device.name} is not surely the adapter {opened.name}")
        total, used = self._room(device)
        free = None if total is None else total - (used or 0)
        software = device.device_class is DeviceClass.SOFTWARE
        return WebGPUSpeed(opened, free_bytes=free, software=software)

    async def shutdown(self) -> None:
        """Free what is still allocated and close the devices; harmless twice.

        A driver that hangs is left behind.
        """
        import anyio

        self._buffers.clear()
        opened, self._opened = self._opened, {}

        def close() -> None:
            for device in opened.values():
                device.close()

        with anyio.move_on_after(_CLOSE_SECONDS):
            await on_daemon_thread(close, name="exo-gpu-close-vulkan")
        await super().shutdown()

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Take memory of the real driver, never more than its pool has free.

        Raises:
            OutOfDeviceMemory: when the pool or the driver holds no more.

        """
        device = self.require(device_id)

        def take() -> MemoryHandle:
            opened = self._open(device_id)
            return self._buffers.add(
                device_id,
                size_bytes,
                lambda: opened.create_buffer(size_bytes),
                lambda: self._room(device),
                pool=device.memory_pool,
            )

        return await on_daemon_thread(take, name=f"exo-gpu-allocate-{device_id}")

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back at once."""
        buffer = self._buffers.remove(handle)
        opened = self._open(handle.device_id)
        await on_daemon_thread(lambda: opened.free(buffer), name="exo-gpu-free-vulkan")

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(dst_handle, offset_bytes, len(src))
        opened = self._open(dst_handle.device_id)
        await on_daemon_thread(
            lambda: opened.write(buffer, offset_bytes, src), name="exo-gpu-copy-vulkan"
        )

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(src_handle, offset_bytes, size_bytes)
        opened = self._open(src_handle.device_id)
        return await on_daemon_thread(
            lambda: opened.read(buffer, offset_bytes, size_bytes), name="exo-gpu-copy-vulkan"
        )

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes``; between two drivers through the machine's memory."""
        source = self._buffers.get(src_handle, 0, size_bytes)
        target = self._buffers.get(dst_handle, 0, size_bytes)
        reader = self._open(src_handle.device_id)
        writer = self._open(dst_handle.device_id)

        def copy() -> None:
            if reader is writer:
                reader.copy(source, target, size_bytes)
                return
            for start in range(0, size_bytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, size_bytes - start)
                writer.write(target, start, reader.read(source, start, length))

        await on_daemon_thread(copy, name="exo-gpu-copy-vulkan")

    async def synchronize(self, device_id: str) -> None:
        """Wait until everything submitted to the device is done."""
        await on_daemon_thread(
            lambda: self._open(device_id).synchronize(), name="exo-gpu-wait-vulkan"
        )

    def _open(self, device_id: str) -> WebGPUDevice:
        self.require(device_id)
        with self._locks[device_id]:  # a driver that hangs must not hold up the others
            if device_id not in self._opened:
                key, rank = self._keys[device_id]
                self._opened[device_id] = WebGPUDevice(rank, key=key)
            return self._opened[device_id]

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        if device.device_class is DeviceClass.SOFTWARE:
            memory = host.memory()
            return memory.total_bytes, memory.used_bytes
        return device.memory_bytes, None


def _drivers(manifest: str) -> dict[str, str | None]:
    return {**dict.fromkeys(vulkan_manifests.LISTS, manifest), vulkan_manifests.ADDED: None}
