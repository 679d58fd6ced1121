"""What is measured on the host's CPU: NumPy's copies, matrix products and smallest call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Two arrays of this size are beyond the caches of all but the largest server processors.
_LARGEST_BYTES = 2**27
_SHARE_OF_FREE = 16
_SMALLEST_BYTES = 2**20

# A product of this order keeps every core busy, and takes 30 ms on the slowest of today's cores.
_ORDER = 512

_HERE = "its memory is the host's own: nothing is moved"


class NumPySpeed:
    """Operations to be timed on the CPU, each of which blocks until it is done."""

    def __init__(self, *, free_bytes: int, cores: int) -> None:
        """Take the arrays, at most a sixteenth of ``free_bytes`` each, and ``cores`` threads."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        size = min(_LARGEST_BYTES, max(_SMALLEST_BYTES, free_bytes // _SHARE_OF_FREE))
        self._numpy = np
        self._source = np.ones(size // 4, dtype=np.float32)
        self._target = np.zeros_like(self._source)
        self._left = np.full((_ORDER, _ORDER), 0.5, dtype=np.float32)
        self._product = np.empty_like(self._left)
        self._one, self._two = np.ones((2, 1), dtype=np.float32)
        self._pool = ThreadPoolExecutor(cores)
        self._targets = np.array_split(self._target, cores)
        self._sources = np.array_split(self._source, cores)

    @property
    def reasons(self) -> dict[str, str]:
        """Why two of the figures are none of a CPU's."""
        return {"host_to_device_gbps": _HERE, "device_to_host_gbps": _HERE}

    def operations(self) -> dict[str, Callable[[int], float]]:
        """Field of a result -> what does ``amount`` units of it, and returns the work done."""
        return {
            "launch_seconds": self._launch,
            "memory_gbps": self._copy,
            "fp32_gflops": self._multiply,
        }

    def close(self) -> None:
        """Let go of the threads; harmless twice."""
        self._pool.shutdown()

    def _launch(self, amount: int) -> float:
        for _ in range(amount):
            self._numpy.add(self._one, self._one, out=self._two)
        return amount

    def _copy(self, amount: int) -> float:
        """One thread a core, since NumPy copies with one; every byte is read and written once."""
        for _ in range(amount):
            list(self._pool.map(self._numpy.copyto, self._targets, self._sources))
        return 2.0 * self._source.nbytes * amount

    def _multiply(self, amount: int) -> float:
        """The product of two matrices, through the BLAS that NumPy brings."""
        for _ in range(amount):
            self._numpy.matmul(self._left, self._left, out=self._product)
        return 2.0 * _ORDER**3 * amount
