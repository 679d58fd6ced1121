"""Memory and compute shaders through wgpu; its only importer.

Which device it opens follows from the Vulkan drivers that this process can see.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    DeviceLost,
    OutOfDeviceMemory,
)
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

# Copies go through a staging buffer of the driver's: pieces of this size keep it small.
_PIECE_BYTES = 16 * 2**20

# WebGPU copies whole words.
_WORD = 4

# Compiled shaders kept per device; a program rarely has more.
_PIPELINES_KEPT = 32

# Mesa's layer for choosing a device would reorder adapters, and complains on stderr where there
# is no desktop session.
_QUIET = "NODEVICE_SELECT"

_enumeration = threading.Lock()


class AdapterKey(NamedTuple):
    """What Vulkan and wgpu both tell of a device; equal cards have equal keys.

    Without a name it means one card, of which each driver may show one adapter.
    """

    vendor_id: int
    device_id: int
    name: str = ""


class WebGPUDevice:
    """One adapter, opened. ``index`` counts the adapters of ``api`` that this process can see.

    With a ``key`` it counts the adapters with that key only, which is safe where several
    drivers are visible.

    Raises:
        BackendUnavailable: when wgpu is not installed.
        BackendError: when there is no such adapter, several are equal for a key without a name,
            or its driver refuses to open it.

    """

    def __init__(
        self, index: int = 0, *, key: AdapterKey | None = None, api: str = "Vulkan"
    ) -> None:
        self._api = api
        self._lock = threading.RLock()
        self._pipelines: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._shared: dict[int, Any] = {}
        self._wgpu = _import_wgpu()
        with self._errors():
            adapters = self._find(index, key)
            adapter = adapters[index]
            self._limits: dict[str, int] = dict(adapter.limits)
            self._device: Any = adapter.request_device_sync(required_limits=self._limits)
            self._fence = self._buffer(_WORD, self._wgpu.BufferUsage.COPY_SRC)
            self.choices = len(adapters)
            """How many adapters ``index`` counted."""
        self.name: str = adapter.info["device"]
        self.ids: tuple[int, int] = (adapter.info["vendor_id"], adapter.info["device_id"])
        self.driver: str = adapter.info["description"] or adapter.info["vendor"]

    @property
    def largest_buffer_bytes(self) -> int:
        """The most that one piece of memory can hold on this driver."""
        return self._limits["max-buffer-size"]

    def compute(
        self,
        shader: str,
        inputs: Sequence[bytes],
        output_bytes: int,
        groups: tuple[int, int, int] = (1, 1, 1),
    ) -> bytes:
        """Run a WGSL shader's ``main`` once and return its output buffer.

        ``inputs`` are bound read-only at 0, 1, ... of group 0, the output behind them.

        Raises:
            BackendError: for a shader or sizes that the driver refuses, with its message.
            OutOfDeviceMemory: when the buffers do not fit.

        """
        usage = self._wgpu.BufferUsage
        buffers: list[Any] = []
        with self._lock, self._errors():
            try:
                for data in inputs:
                    buffers.append(self._buffer(len(data), usage.STORAGE | usage.COPY_DST))
                    self._write(buffers[-1], 0, data)
                buffers.append(self._buffer(output_bytes, usage.STORAGE | usage.COPY_SRC))
                self._dispatch(shader, buffers, groups)
                return self._read(buffers[-1], 0, output_bytes)
            finally:
                for buffer in buffers:
                    buffer.destroy()

    def dispatch(self, shader: str, buffers: list[Any], groups: tuple[int, int, int]) -> None:
        """Start a shader on buffers of this device, the last of them its output; waits for nothing.

        Raises:
            BackendError: for a shader or sizes that the driver refuses, with its message.

        """
        with self._lock, self._errors():
            self._dispatch(shader, buffers, groups)

    def create_buffer(self, size_bytes: int) -> Any:
        """Memory that can be written, read, copied and bound to shaders."""
        usage = self._wgpu.BufferUsage
        with self._lock, self._errors():
            return self._buffer(size_bytes, usage.STORAGE | usage.COPY_SRC | usage.COPY_DST)

    def write(self, buffer: Any, offset_bytes: int, data: bytes) -> None:
        """Write ``data`` from ``offset_bytes`` on."""
        with self._lock, self._errors():
            self._write(buffer, offset_bytes, data)

    def read(self, buffer: Any, offset_bytes: int, size_bytes: int) -> bytes:
        """The ``size_bytes`` from ``offset_bytes`` on."""
        with self._lock, self._errors():
            return self._read(buffer, offset_bytes, size_bytes)

    def copy(self, source: Any, target: Any, size_bytes: int, *, times: int = 1) -> None:
        """Copy the first ``size_bytes`` between two buffers of this device.

        ``times`` repeats it in one submission, for those who measure.
        """
        whole = size_bytes - size_bytes % _WORD
        with self._lock, self._errors():
            if whole:
                encoder = self._device.create_command_encoder()
                for _ in range(times):
                    encoder.copy_buffer_to_buffer(source, 0, target, 0, whole)
                self._device.queue.submit([encoder.finish()])
            if size_bytes > whole:
                self._write(target, whole, self._read(source, whole, size_bytes - whole))

    def free(self, buffer: Any) -> None:
        """Give the memory back at once; waits for what still uses it."""
        with self._lock, self._errors():
            buffer.destroy()
            self._settle()

    def synchronize(self) -> None:
        """Wait until everything submitted is done."""
        with self._lock, self._errors():
            self._settle()

    def close(self) -> None:
        """Let go of the device; harmless twice."""
        with self._lock:
            self._pipelines.clear()
            self._shared.clear()
            self._device.destroy()

    def _find(self, index: int, key: AdapterKey | None) -> list[Any]:
        with _enumeration, _quiet():
            found = self._wgpu.gpu.enumerate_adapters_sync()
        adapters = [  # OpenGL lists the same devices again
            adapter for adapter in found if adapter.info["backend_type"] == self._api
        ]
        if key is not None:
            adapters = [adapter for adapter in adapters if _is(adapter.info, key)]
        if index >= len(adapters):
            names = ", ".join(adapter.info["device"] for adapter in adapters) or "none"
            what = "" if key is None else f" {_said(key)}"
            raise BackendError(f"there is no {self._api} adapter {index}{what} (there is: {names})")
        if key is not None and not key.name:
            _refuse_equals(adapters, key)
        return adapters

    def _settle(self) -> None:
        """Wait for the queue by reading a word behind everything else.

        The driver then frees what it held for it. wgpu 0.32 cannot wait for the queue by itself:
        its callback has the wrong signature.
        """
        self._device.queue.read_buffer(self._fence)

    def _buffer(self, size_bytes: int, usage: int) -> Any:
        largest = self.largest_buffer_bytes
        if size_bytes > largest:
            asked, most = format_size(size_bytes), format_size(largest)
            raise OutOfDeviceMemory(f"{asked} asked in one piece; the driver gives at most {most}")
        size = max(_WORD, -(-size_bytes // _WORD) * _WORD)
        return self._device.create_buffer(size=size, usage=usage)

    def _write(self, buffer: Any, offset: int, data: bytes) -> None:
        before, after = offset % _WORD, -(offset + len(data)) % _WORD
        if before or (after and offset + len(data) + after < buffer.size):
            end = min(buffer.size, offset + len(data) + after)
            tail = self._read(buffer, offset + len(data), end - offset - len(data))
            data = self._read(buffer, offset - before, before) + data + tail
            offset -= before
        elif after:  # up to the padded end: nothing lies behind
            data += bytes(after)
        view = memoryview(data)
        if len(view) <= _PIECE_BYTES:
            self._device.queue.write_buffer(buffer, offset, view)
            self._device.queue.submit([])  # else the driver keeps the staging buffer for later
            return
        # Many pieces at once would each take fresh memory, which the driver clears first.
        for start in range(0, len(view), _PIECE_BYTES):
            self._fill(buffer, offset + start, view[start : start + _PIECE_BYTES])

    def _read(self, buffer: Any, offset: int, size: int) -> bytes:
        before = offset % _WORD
        first, end = offset - before, -(-(offset + size) // _WORD) * _WORD
        if size == 0:
            return b""
        out = io.BytesIO()  # what it holds becomes the result without another copy
        out.seek(end - first - 1)
        out.write(b"\0")
        out.seek(0)
        for start in range(first, end, _PIECE_BYTES):
            self._fetch(buffer, start, min(_PIECE_BYTES, end - start), out)
        data = out.getvalue()
        return data if len(data) == size else data[before : before + size]

    def _fetch(self, buffer: Any, start: int, length: int, out: io.BytesIO) -> None:
        """One piece through memory that the driver shares with us."""
        usage = self._wgpu.BufferUsage
        shared = self._share(usage.COPY_DST | usage.MAP_READ)
        encoder = self._device.create_command_encoder()
        encoder.copy_buffer_to_buffer(buffer, start, shared, 0, length)
        self._device.queue.submit([encoder.finish()])
        shared.map_sync(self._wgpu.MapMode.READ, 0, length)
        try:
            out.write(shared.read_mapped(0, length, copy=False))
        finally:
            shared.unmap()

    def _fill(self, buffer: Any, start: int, piece: memoryview) -> None:
        """One piece the other way; mapping waits for the piece before it."""
        usage = self._wgpu.BufferUsage
        shared = self._share(usage.COPY_SRC | usage.MAP_WRITE)
        shared.map_sync(self._wgpu.MapMode.WRITE, 0, len(piece))
        try:
            shared.write_mapped(piece, 0)
        finally:
            shared.unmap()
        encoder = self._device.create_command_encoder()
        encoder.copy_buffer_to_buffer(shared, 0, buffer, start, len(piece))
        self._device.queue.submit([encoder.finish()])

    def _share(self, usage: int) -> Any:
        """Memory for one piece that the driver shares with us, taken once for each way and kept."""
        if usage not in self._shared:
            self._shared[usage] = self._buffer(_PIECE_BYTES, usage)
        return self._shared[usage]

    def _dispatch(self, shader: str, buffers: list[Any], groups: tuple[int, int, int]) -> None:
        pipeline = self._pipeline(shader, len(buffers))
        entries = [
            {"binding": place, "resource": {"buffer": buffer, "offset": 0, "size": buffer.size}}
            for place, buffer in enumerate(buffers)
        ]
        group = self._device.create_bind_group(
            layout=pipeline.get_bind_group_layout(0), entries=entries
        )
        encoder = self._device.create_command_encoder()
        work = encoder.begin_compute_pass()
        work.set_pipeline(pipeline)
        work.set_bind_group(0, group)
        work.dispatch_workgroups(*groups)
        work.end()
        self._device.queue.submit([encoder.finish()])

    def _pipeline(self, shader: str, count: int) -> Any:
        """The compiled shader for so many buffers; all but the last are read-only."""
        pipeline = self._pipelines.pop((shader, count), None)
        if pipeline is None:
            kinds = ["read-only-storage"] * (count - 1) + ["storage"]
            layout = self._device.create_bind_group_layout(
                entries=[
                    {
                        "binding": place,
                        "visibility": self._wgpu.ShaderStage.COMPUTE,
                        "buffer": {"type": kind},
                    }
                    for place, kind in enumerate(kinds)
                ]
            )
            pipeline = self._device.create_compute_pipeline(
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={
                    "module": self._device.create_shader_module(code=shader),
                    "entry_point": "main",
                },
            )
        self._pipelines[shader, count] = pipeline
        while len(self._pipelines) > _PIPELINES_KEPT:
            self._pipelines.popitem(last=False)
        return pipeline

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Errors of wgpu and of the driver behind it, in our words."""
        try:
            yield
        except BackendError:
            raise
        except self._wgpu.GPUOutOfMemoryError as error:
            raise OutOfDeviceMemory(_first_lines(error)) from error
        except (self._wgpu.GPUError, RuntimeError, ValueError, TypeError) as error:
            text = _first_lines(error)
            raise (DeviceLost if "lost" in text.lower() else BackendError)(text) from error


def _import_wgpu() -> Any:
    try:
        import wgpu
    except ImportError as error:
        raise BackendUnavailable(
            "the Python package wgpu is not installed", "pip install 'exo-gpu[vulkan]'"
        ) from error
    return wgpu


def _is(info: Any, key: AdapterKey) -> bool:
    known = AdapterKey(info["vendor_id"], info["device_id"], info["device"])
    return known[:2] == key[:2] and key.name in {"", known.name}


def _said(key: AdapterKey) -> str:
    ids = f"{key.vendor_id:04x}:{key.device_id:04x}"
    return f"named {key.name}" if key.name else f"with the PCI ids {ids}"


def _refuse_equals(adapters: list[Any], key: AdapterKey) -> None:
    drivers = [adapter.info["description"] for adapter in adapters]
    if len(set(drivers)) < len(drivers):
        raise BackendError(
            f"{len(drivers)} adapters {_said(key)} are equal, and wgpu does not tell which is which"
        )


def _first_lines(error: BaseException) -> str:
    """What wgpu says, on one line and of bounded length."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line)[:500]


@contextmanager
def _quiet() -> Generator[None]:
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before
