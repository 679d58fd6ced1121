"""What is measured on a CUDA device: copies; it takes a compiled kernel to compute there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.backends.cuda_memory import CudaMemory

# A copy of a GiB takes half a millisecond on the fastest memory of today, many times a call.
_LARGEST_BYTES = 2**30
# What is moved at once between host and device.
_LARGEST_PIECE_BYTES = 2**26
_UNIT_BYTES = 2**22
_SHARE_OF_FREE = 16

_NO_KERNEL = "the cuda backend starts no kernels; a Vulkan driver of the same card would tell"


class CudaSpeed:
    """Operations to be timed on one GPU, each of which blocks until it is done."""

    def __init__(self, memory: CudaMemory, hardware_id: str) -> None:
        """Take two buffers, at most a sixteenth of what is free each.

        Raises:
            BackendError: when CUDA does not start or gives no memory, with its reason.

        """
        self._memory = memory
        self._gpu = hardware_id
        total, used = memory.room(hardware_id)
        size = min(_LARGEST_BYTES, (total - used) // _SHARE_OF_FREE)
        self._size = max(_UNIT_BYTES, size - size % _UNIT_BYTES)
        self._data = bytes(min(_LARGEST_PIECE_BYTES, self._size))
        self._source = memory.allocate(hardware_id, self._size)
        try:
            self._target = memory.allocate(hardware_id, self._size)
        except BaseException:
            memory.free(hardware_id, self._source)
            raise
        self._open = True

    @property
    def reasons(self) -> dict[str, str]:
        """Why two of the figures are missing."""
        return {"fp32_gflops": _NO_KERNEL, "launch_seconds": _NO_KERNEL}

    def operations(self) -> dict[str, Callable[[int], float]]:
        """Field of a result -> what does ``amount`` units of it, and returns the work done."""
        return {
            "host_to_device_gbps": self._write,
            "device_to_host_gbps": self._read,
            "memory_gbps": self._copy,
        }

    def close(self) -> None:
        """Give the memory back; harmless twice."""
        if self._open:
            self._open = False
            for address in (self._source, self._target):
                self._memory.free(self._gpu, address)

    def _write(self, amount: int) -> float:
        """4 MiB for each unit, over and over the same memory."""
        view = memoryview(self._data)
        pieces = {len(view): self._data}
        for size in self._pieces(amount):
            data = pieces.setdefault(size, bytes(view[:size]))
            self._memory.write(self._gpu, self._source, data)
        self._memory.synchronize(self._gpu)
        return float(amount * _UNIT_BYTES)

    def _read(self, amount: int) -> float:
        for size in self._pieces(amount):
            self._memory.read(self._gpu, self._source, size)
        return float(amount * _UNIT_BYTES)

    def _pieces(self, amount: int) -> list[int]:
        whole, rest = divmod(amount * _UNIT_BYTES, len(self._data))
        return [len(self._data)] * whole + [rest] * bool(rest)

    def _copy(self, amount: int) -> float:
        """Whole copies, so that caches hold no part; each reads and writes every byte once."""
        for _ in range(amount):
            self._memory.copy((self._gpu, self._source), (self._gpu, self._target), self._size)
        return 2.0 * self._size * amount
