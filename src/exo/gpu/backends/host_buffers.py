"""Memory operations on the machine's own memory, for devices that have no other."""

from __future__ import annotations

import mmap
from abc import abstractmethod
from typing import TYPE_CHECKING

from exo.gpu.backend import GPUBackend, MemoryHandle, on_daemon_thread
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.vocabulary.errors import OutOfDeviceMemory

if TYPE_CHECKING:
    from exo.gpu.backend import GPUDevice


class HostBufferBackend(GPUBackend):
    """A backend whose memory is ordinary memory, bounded by what :meth:`_room` tells."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: BufferTable[mmap.mmap] = BufferTable()

    @abstractmethod
    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """Total and used bytes of the device's pool, None for unknown."""

    async def shutdown(self) -> None:
        """Free what is still allocated; harmless twice."""
        self._buffers.clear()
        await super().shutdown()

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Take zeroed memory.

        Raises:
            OutOfDeviceMemory: when the pool holds no more.

        """
        device = self.require(device_id)
        return self._buffers.add(
            device_id, size_bytes, lambda: _pages(size_bytes), lambda: self._room(device)
        )

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back."""
        self._buffers.remove(handle)

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(dst_handle, offset_bytes, len(src))

        def copy() -> None:
            memoryview(buffer)[offset_bytes : offset_bytes + len(src)] = src

        await on_daemon_thread(copy, name=f"exo-gpu-copy-{dst_handle.device_id}")

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        buffer = self._buffers.get(src_handle, offset_bytes, size_bytes)
        view = memoryview(buffer)[offset_bytes : offset_bytes + size_bytes]
        return await on_daemon_thread(
            lambda: bytes(view), name=f"exo-gpu-copy-{src_handle.device_id}"
        )

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes`` of one piece of memory into another."""
        data = await self.copy_from_device(src_handle, 0, size_bytes)
        await self.copy_to_device(data, dst_handle)

    async def synchronize(self, device_id: str) -> None:
        """Nothing is ever pending here; the device must be known all the same."""
        self.require(device_id)


def _pages(size_bytes: int) -> mmap.mmap:
    """Zeroed pages of the operating system, which takes them back as soon as they are dropped."""
    try:
        return mmap.mmap(-1, max(1, size_bytes))
    except OSError as error:
        raise OutOfDeviceMemory(f"the operating system refuses {size_bytes} bytes") from error
