"""What is measured on a device that wgpu opens: copies, multiply-adds and launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.backends.webgpu import WebGPUDevice

# Two buffers of this size are beyond the cache of any device so far (256 MiB on an MI300X).
_LARGEST_BYTES = 2**28
# A software driver's cache is the processor's, and what takes it long is to be given memory.
_LARGEST_SOFTWARE_BYTES = 2**26
# Software drivers and small cards: no probe takes more than this share of what is free.
_SHARE_OF_FREE = 16
_SMALLEST_BYTES = 2**22

_INVOCATIONS = 64  # of a group; every driver takes that many
_MOST_GROUPS = 16384  # below the 65,535 that WebGPU promises; a million threads fill any device
_FLOPS = 16 * 4 * 2  # of one round below: 16 multiply-adds of four numbers each

_EMPTY = """
@group(0) @binding(0) var<storage, read_write> output: array<u32>;
@compute @workgroup_size(1) fn main() { if (output[0] == 1u) { output[0] = 0u; } }
"""

# Eight chains that do not wait for one another; factors near 1 keep the numbers normal, and the
# sum is written only where it cannot be, so that no compiler drops the work.
_MULTIPLY_ADD = """
@group(0) @binding(0) var<storage, read> given: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4<f32>>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) place: vec3<u32>) {
    let x = given[0];
    let y = given[1];
    let rounds = u32(given[2].x);
    var a = vec4<f32>(f32(place.x));
    var b = a + x; var c = b + x; var d = c + x;
    var e = d + x; var f = e + x; var g = f + x; var h = g + x;
    for (var i = 0u; i < rounds; i++) {
        a = a * x + y; b = b * x + y; c = c * x + y; d = d * x + y;
        e = e * x + y; f = f * x + y; g = g * x + y; h = h * x + y;
        a = a * x + y; b = b * x + y; c = c * x + y; d = d * x + y;
        e = e * x + y; f = f * x + y; g = g * x + y; h = h * x + y;
    }
    let sum = a + b + c + d + e + f + g + h;
    if (sum.x == -1.0) { output[0] = sum; }
}
"""


class WebGPUSpeed:
    """Operations to be timed on one open device, each of which blocks until it is done."""

    def __init__(
        self, device: WebGPUDevice, *, free_bytes: int | None = None, software: bool = False
    ) -> None:
        """Take the buffers; ``free_bytes`` bounds them.

        Raises:
            OutOfDeviceMemory: when the driver gives no such buffers.

        """
        self._device = device
        largest = _LARGEST_SOFTWARE_BYTES if software else _LARGEST_BYTES
        size = min(largest, device.largest_buffer_bytes)
        if free_bytes is not None:
            size = min(size, free_bytes // _SHARE_OF_FREE)
        self._size = max(_SMALLEST_BYTES, size - size % _SMALLEST_BYTES)
        self._rounds: int | None = None
        self._buffers: list[Any] = []
        for size_bytes in (self._size, self._size, 48, 64):
            self._buffers.append(device.create_buffer(size_bytes))
        self._source, self._target, self._given, self._output = self._buffers
        self._data = bytes(self._size)
        device.write(self._source, 0, self._data)
        self._copy(1)
        self._launch(1)  # shaders are compiled when they are first used
        self._multiply_add(1)

    @property
    def reasons(self) -> dict[str, str]:
        """Nothing is left out here."""
        return {}

    def operations(self) -> dict[str, Callable[[int], float]]:
        """Field of a result -> what does ``amount`` units of it, and returns the work done."""
        return {
            "launch_seconds": self._launch,
            "host_to_device_gbps": self._write,
            "device_to_host_gbps": self._read,
            "memory_gbps": self._copy,
            "fp32_gflops": self._multiply_add,
        }

    def close(self) -> None:
        """Give the memory back; harmless twice."""
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._device.free(buffer)

    def _launch(self, amount: int) -> float:
        for _ in range(amount):
            self._device.dispatch(_EMPTY, [self._output], (1, 1, 1))
            self._device.synchronize()
        return amount

    def _write(self, amount: int) -> float:
        """4 MiB for each unit, over and over the same buffer."""
        return self._pieces(
            amount, lambda size: self._device.write(self._source, 0, self._part(size))
        )

    def _read(self, amount: int) -> float:
        return self._pieces(amount, lambda size: self._device.read(self._source, 0, size))

    def _pieces(self, amount: int, move: Callable[[int], object]) -> float:
        left = total = amount * _SMALLEST_BYTES
        while left:
            size = min(left, self._size)
            move(size)
            left -= size
        self._device.synchronize()
        return total

    def _part(self, size_bytes: int) -> Any:
        return memoryview(self._data)[:size_bytes]

    def _copy(self, amount: int) -> float:
        """Whole copies, so that caches hold no part; each reads and writes every byte once."""
        self._device.copy(self._source, self._target, self._size, times=amount)
        self._device.synchronize()
        return 2.0 * self._size * amount

    def _multiply_add(self, amount: int) -> float:
        """Groups first, then rounds, so that a slow device ends early and a fast one is full."""
        groups = min(_MOST_GROUPS, 16 * amount)
        rounds = 16 * -(-16 * amount // groups)
        if rounds != self._rounds:
            import struct

            given = struct.pack("12f", *(4 * [0.999]), *(4 * [0.001]), *(4 * [float(rounds)]))
            self._device.write(self._given, 0, given)
            self._rounds = rounds
        size = (groups, 1, 1)
        self._device.dispatch(_MULTIPLY_ADD, [self._given, self._output], size)
        self._device.synchronize()
        return float(groups * _INVOCATIONS * rounds * _FLOPS)
