"""What one device does: the Mandelbrot iteration of one tile, as a compute shader and in NumPy.

Both start from the same 32-bit coordinates and round after every operation, so that unlike
devices return the same counts for the same pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from exo.gpu import DeviceClass, GPUBackendFactory, current_device
from exo.gpu.backend import ComputeAbility

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.backend import GPUBackend, GPUDevice

# Beyond |z|^2 = 256 the smooth colouring no longer shows bands.
ESCAPE = 256.0
# Invocations in one workgroup: the least that every WebGPU device offers is 256.
GROUP = 64

# A driver may fuse a product and a sum into one operation that rounds once instead of twice, and
# chaotic pixels then come out differently. `rounded` keeps the product apart: the mask is all
# ones, but only the caller knows that.
SHADER = """
@group(0) @binding(0) var<storage, read> settings: array<u32>;
@group(0) @binding(1) var<storage, read> columns: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<f32>;
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

fn rounded(product: f32, mask: u32) -> f32 {
    return bitcast<f32>(bitcast<u32>(product) & mask);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let width = settings[0];
    let pixels = width * settings[1];
    let limit = settings[2];
    let mask = settings[3];
    let pixel = invocation.x;
    if (pixel >= pixels) { return; }
    let real = columns[pixel % width];
    let imaginary = rows[pixel / width];
    var x = 0.0;
    var y = 0.0;
    var xx = 0.0;
    var yy = 0.0;
    var count = 0u;
    while (count < limit && xx + yy <= 256.0) {
        let xy = rounded(x * y, mask);
        x = xx - yy + real;
        y = xy + xy + imaginary;
        xx = rounded(x * x, mask);
        yy = rounded(y * y, mask);
        count = count + 1u;
    }
    result[pixel] = count;
    result[pixels + pixel] = bitcast<u32>(xx + yy);
}
"""


@dataclass(frozen=True, eq=False)
class Tile:
    """The coordinates of one tile, a frame one pixel wide included, and the iteration limit."""

    index: int
    columns: np.ndarray
    rows: np.ndarray
    limit: int


@dataclass(frozen=True, eq=False)
class Rendering:
    """Iterations and last |z|^2 of every pixel of a tile, and the iterations in all."""

    tile: int
    counts: np.ndarray
    norms: np.ndarray
    iterations: int


def render_in_numpy(tile: Tile) -> tuple[np.ndarray, np.ndarray]:
    """Counts (uint32) and norms (float32); an escaped pixel is parked at 0, later dropped."""
    width, height = tile.columns.size, tile.rows.size
    counts = np.full(width * height, tile.limit, np.uint32)
    norms = np.zeros(width * height, np.float32)
    where = np.arange(width * height)
    real, imaginary = np.tile(tile.columns, height), np.repeat(tile.rows, width)
    x, y, xx, yy, scratch = (np.zeros_like(real) for _ in range(5))
    parked = 0
    for count in range(1, tile.limit + 1):
        np.multiply(x, y, out=scratch)
        np.subtract(xx, yy, out=x)
        np.add(x, real, out=x)
        np.add(scratch, scratch, out=scratch)
        np.add(scratch, imaginary, out=y)
        np.multiply(x, x, out=xx)
        np.multiply(y, y, out=yy)
        np.add(xx, yy, out=scratch)
        if scratch.max() <= ESCAPE:
            continue
        escaped = np.flatnonzero(scratch > ESCAPE)
        counts[where[escaped]] = count
        norms[where[escaped]] = scratch[escaped]
        for values in (real, imaginary, x, y, xx, yy):
            values[escaped] = 0
        where[escaped] = -1
        parked += escaped.size
        if parked * 4 >= where.size:
            left = np.flatnonzero(where >= 0)
            where, real, imaginary = where[left], real[left], imaginary[left]
            x, y, xx, yy, scratch = x[left], y[left], xx[left], yy[left], scratch[left]
            parked = 0
        if not where.size:
            break
    inside = where >= 0
    norms[where[inside]] = (xx + yy)[inside]
    return counts.reshape(height, width), norms.reshape(height, width)


class ShaderRenderer:
    """Renders on a device through the compute ability of its backend."""

    def __init__(self, backend: ComputeAbility, device_id: str) -> None:
        self._backend = backend
        self._device_id = device_id

    def __call__(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Counts (uint32) and norms (float32) of a tile."""
        width, height = tile.columns.size, tile.rows.size
        pixels = width * height
        settings = np.array([width, height, tile.limit, 0xFFFFFFFF], np.uint32)
        answer = self._backend.compute(
            self._device_id,
            SHADER,
            inputs=[settings.tobytes(), tile.columns.tobytes(), tile.rows.tobytes()],
            output_bytes=8 * pixels,
            groups=(-(-pixels // GROUP), 1, 1),
        )
        result = np.frombuffer(answer, np.uint32)
        counts, norms = result[:pixels], result[pixels:].view(np.float32)
        return counts.reshape(height, width), norms.reshape(height, width)


def can_render(device: GPUDevice, backend: GPUBackend | None) -> bool:
    """Whether there is a way to render on a device: NumPy on the host, else compute shaders."""
    return device.device_class is DeviceClass.HOST or isinstance(backend, ComputeAbility)


@cache
def renderer() -> Callable[[Tile], tuple[np.ndarray, np.ndarray]]:
    """What renders in this process, opened once: NumPy on the host, else the device it got."""
    device = current_device()
    if device is None or device.device_class is DeviceClass.HOST:
        return render_in_numpy
    backend = GPUBackendFactory.make(device.backend)
    if not isinstance(backend, ComputeAbility):
        raise SystemExit(f"{device.device_id}: the {backend.name} backend runs no compute shaders")
    (pinned,) = backend.find()  # a worker sees no other device than its own
    return ShaderRenderer(backend, pinned.device_id)


def prepare() -> None:
    """Open the device and compile the shader before the first tile, outside the timed part."""
    point = np.zeros(1, np.float32)
    renderer()(Tile(index=0, columns=point, rows=point, limit=1))


def render(tile: Tile) -> Rendering:
    """One tile, on the device of this process."""
    counts, norms = renderer()(tile)
    return Rendering(tile.index, counts, norms, int(counts.sum(dtype=np.uint64)))
