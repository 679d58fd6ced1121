"""Memory and compute of a backend whose devices wgpu opens: all but finding and telemetry."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.backend import GPUBackend, MemoryHandle, on_daemon_thread
from exo.gpu.backends.buffers import BufferTable
from exo.gpu.backends.webgpu import AdapterKey, WebGPUDevice
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exo.gpu.backends.drm import Card
    from exo.gpu.vocabulary.device import GPUDevice

# Drivers that do not let go by then are left behind.
_CLOSE_SECONDS = 5.0

# Copies between two adapters pass through the machine's memory in pieces of this size.
_PIECE_BYTES = 16 * 2**20


class _Piece(NamedTuple):
    """A buffer of the driver's and the adapter that made it, whatever ids devices have later."""

    adapter: WebGPUDevice
    buffer: Any


class WebGPUBuffers(GPUBackend):
    """A backend that moves memory and computes through wgpu. A vendor adds the two hooks below."""

    def __init__(self) -> None:
        super().__init__()
        self._adapters: dict[str, WebGPUDevice] = {}
        self._buffers: BufferTable[_Piece] = BufferTable()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @abstractmethod
    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        """The device, opened (see :meth:`_once`); may block.

        Raises:
            BackendError: when it cannot be told which adapter it is, or it does not open.

        """

    @abstractmethod
    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """Total and used bytes of the memory that a device allocates from; None: unknown."""

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
        adapter = self._adapter(self.require(device_id))
        return adapter.compute(shader, inputs, output_bytes, groups)

    async def shutdown(self) -> None:
        """Free what is still allocated and close the devices; harmless twice.

        A driver that hangs is left behind.
        """
        import anyio

        self._buffers.clear()
        adapters, self._adapters = self._adapters, {}

        def close() -> None:
            for adapter in adapters.values():
                adapter.close()

        with anyio.move_on_after(_CLOSE_SECONDS):
            await on_daemon_thread(close, name=f"exo-gpu-close-{self.name}")
        await super().shutdown()

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Take memory of the driver, never more than its pool is known to have free.

        Raises:
            OutOfDeviceMemory: when the pool or the driver holds no more.

        """
        device = self.require(device_id)

        def take() -> MemoryHandle:
            adapter = self._adapter(device)
            return self._buffers.add(
                device_id,
                size_bytes,
                lambda: _Piece(adapter, adapter.create_buffer(size_bytes)),
                lambda: self._room(device),
                pool=device.memory_pool,
            )

        return await on_daemon_thread(take, name=f"exo-gpu-allocate-{device_id}")

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back at once."""
        adapter, buffer = self._buffers.remove(handle)
        await on_daemon_thread(lambda: adapter.free(buffer), name=f"exo-gpu-free-{self.name}")

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` from ``offset_bytes`` on."""
        adapter, buffer = self._buffers.get(dst_handle, offset_bytes, len(src))
        await on_daemon_thread(
            lambda: adapter.write(buffer, offset_bytes, src), name=f"exo-gpu-copy-{self.name}"
        )

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        adapter, buffer = self._buffers.get(src_handle, offset_bytes, size_bytes)
        return await on_daemon_thread(
            lambda: adapter.read(buffer, offset_bytes, size_bytes),
            name=f"exo-gpu-copy-{self.name}",
        )

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes``; between two adapters through the machine's memory."""
        reader, source = self._buffers.get(src_handle, 0, size_bytes)
        writer, target = self._buffers.get(dst_handle, 0, size_bytes)

        def copy() -> None:
            if reader is writer:
                reader.copy(source, target, size_bytes)
                return
            for start in range(0, size_bytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, size_bytes - start)
                writer.write(target, start, reader.read(source, start, length))

        await on_daemon_thread(copy, name=f"exo-gpu-copy-{self.name}")

    async def synchronize(self, device_id: str) -> None:
        """Wait until everything submitted to the device is done."""
        device = self.require(device_id)
        await on_daemon_thread(
            lambda: self._adapter(device).synchronize(), name=f"exo-gpu-wait-{self.name}"
        )

    def _once(self, place: str, open_adapter: Callable[[], WebGPUDevice]) -> WebGPUDevice:
        """The adapter opened under this name before, else opened now."""
        with self._locks[place]:  # a driver that hangs must not hold up the others
            if place not in self._adapters:
                self._adapters[place] = open_adapter()
            return self._adapters[place]


def open_card(card: Card, present: Iterable[Card]) -> WebGPUDevice:
    """The Vulkan adapter that is this very card, by its PCI ids.

    wgpu tells no place on the bus, so of equal cards none is surely this one; ``present`` are
    all cards of the vendor, also those that the environment hides.

    Raises:
        BackendError: when the card has an equal, when Vulkan shows none or several such
            adapters, or when the driver refuses to open it.

    """
    vendor, _, number = card.pci_id.partition(":")
    try:
        key = AdapterKey(int(vendor, 16), int(number, 16))
    except ValueError:
        raise BackendError(f"{card.place} has PCI ids {card.pci_id!r}, which are none") from None
    equals = [other.place for other in present if other.pci_id == card.pci_id]
    if len(equals) > 1:
        raise BackendError(
            f"{' and '.join(equals)} are equal cards ({card.pci_id}), and wgpu does not tell "
            "which is which; use the vulkan backend's devices"
        )
    return WebGPUDevice(key=key)
