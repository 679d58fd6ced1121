"""Memory operations of the cuda backend: handles and bounds here, the copying in cuda_memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from exo.gpu.backend import GPUBackend, MemoryHandle, on_daemon_thread
from exo.gpu.backends import host
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.backends.cuda_memory import CudaMemory
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from exo.gpu.backends.cuda_speed import CudaSpeed
    from exo.gpu.vocabulary.device import GPUDevice

logger = logging.getLogger("exo.gpu.backends.cuda")

# A driver that does not free memory by then is left behind with it.
_CLOSE_SECONDS = 2.0


class CudaBuffers(GPUBackend):
    """A backend whose memory is CUDA's; ``cuda_library`` is the path of libcuda.so.1."""

    def __init__(self, cuda_library: str | None) -> None:
        super().__init__()
        self._memory = CudaMemory(cuda_library)
        self._buffers: BufferTable[tuple[str, int]] = BufferTable()

    async def shutdown(self) -> None:
        """Free what is still allocated; harmless twice. A driver that hangs is left behind."""
        import anyio

        left = self._buffers.clear()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await on_daemon_thread(lambda: self._let_go(left), name="exo-gpu-close-cuda-memory")
        await super().shutdown()

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Take memory; its content is whatever was there.

        Raises:
            OutOfDeviceMemory: when the GPU, or the machine for an integrated one, has no more.
            AbilityMissing: without cuda-bindings.

        """
        device = self.require(device_id)
        gpu = device.hardware_id

        def make() -> MemoryHandle:
            return self._buffers.add(
                device_id,
                size_bytes,
                lambda: (gpu, self._memory.allocate(gpu, size_bytes)),
                lambda: self._room(device),
                pool=device.memory_pool,
            )

        return await on_daemon_thread(make, name=f"exo-gpu-allocate-{device_id}")

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back.

        Raises:
            InvalidHandle: when it was freed before or is not of this backend.

        """
        gpu, address = self._buffers.remove(handle)
        await on_daemon_thread(
            lambda: self._memory.free(gpu, address), name=f"exo-gpu-free-{handle.device_id}"
        )

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` from ``offset_bytes`` on."""
        gpu, address = self._buffers.get(dst_handle, offset_bytes, len(src))
        await on_daemon_thread(
            lambda: self._memory.write(gpu, address + offset_bytes, src),
            name=f"exo-gpu-copy-{dst_handle.device_id}",
        )

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        gpu, address = self._buffers.get(src_handle, offset_bytes, size_bytes)
        return await on_daemon_thread(
            lambda: self._memory.read(gpu, address + offset_bytes, size_bytes),
            name=f"exo-gpu-copy-{src_handle.device_id}",
        )

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes``; between GPUs directly where they reach each other."""
        source = self._buffers.get(src_handle, 0, size_bytes)
        target = self._buffers.get(dst_handle, 0, size_bytes)
        await on_daemon_thread(
            lambda: self._memory.copy(source, target, size_bytes),
            name=f"exo-gpu-copy-{dst_handle.device_id}",
        )

    async def synchronize(self, device_id: str) -> None:
        """Wait until everything submitted to the GPU by this process is done."""
        gpu = self.require(device_id).hardware_id
        await on_daemon_thread(
            lambda: self._memory.synchronize(gpu), name=f"exo-gpu-wait-{device_id}"
        )

    async def peer_access(self, source_id: str, target_id: str) -> bool | None:
        """Whether one GPU reaches the other's memory directly; None where CUDA does not tell."""
        source, target = self.require(source_id), self.require(target_id)
        try:
            return await on_daemon_thread(
                lambda: self._memory.peer_access(source.hardware_id, target.hardware_id),
                name=f"exo-gpu-peer-{source_id}",
            )
        except BackendError as error:
            logger.debug("peer access of %s to %s: %s", source_id, target_id, error)
            return None

    def speed(self, device: GPUDevice) -> CudaSpeed:
        """What can be timed on a GPU; for the process that measures, pinned to it.

        Raises:
            BackendError: when CUDA does not start or gives no memory, with its reason.

        """
        from exo.gpu.backends.cuda_speed import CudaSpeed

        return CudaSpeed(self._memory, device.hardware_id)

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        if device.memory_pool == HOST_POOL:
            # CUDA counts the file cache of the machine as used, which the kernel would give back.
            memory = host.memory()
            return memory.total_bytes, memory.used_bytes
        return self._memory.room(device.hardware_id)

    def _let_go(self, left: list[tuple[str, int]]) -> None:
        for gpu, address in left:
            try:
                self._memory.free(gpu, address)
            except BackendError as error:
                logger.debug("freeing memory of %s: %s", gpu, error)
        self._memory.close()
