"""The live pieces of memory of one backend: handles, their bounds and their owners."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from exo.gpu.backend import MemoryHandle
from exo.gpu.vocabulary.errors import BackendError, InvalidHandle, OutOfDeviceMemory
from exo.gpu.vocabulary.units import check_whole, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer = TypeVar("Buffer")


class BufferTable(Generic[Buffer]):
    """Every piece of memory that a backend handed out and that was not freed; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, tuple[MemoryHandle, Buffer]] = {}
        self._held: dict[str, tuple[str, int]] = {}
        self._used_before: dict[str, int] = {}

    def add(
        self,
        device_id: str,
        size_bytes: int,
        make: Callable[[], Buffer],
        room: Callable[[], tuple[int | None, int | None]],
        *,
        pool: str = "",
    ) -> MemoryHandle:
        """Make a buffer when its pool has room for it, and hand out its handle.

        ``pool`` names the memory that it comes out of, by default the device's own; ``room``
        gives the total and the used bytes of the pool, None for unknown. Drivers take
        memory only when it is touched, so use is counted as what was used before the first live
        piece plus all live pieces, or as what is used now, whichever is more.

        Raises:
            OutOfDeviceMemory: when the pool holds no more.

        """
        check_whole("size_bytes", size_bytes)
        handle = MemoryHandle(device_id=device_id, size_bytes=size_bytes)
        pool = pool or device_id
        total, used_now = room()
        with self._lock:
            held = sum(size for name, size in self._held.values() if name == pool)
            if held == 0 or pool not in self._used_before:
                self._used_before[pool] = used_now or 0
            used = max(used_now or 0, self._used_before[pool] + held)
            if total is not None and size_bytes > total - used:
                free = format_size(max(0, total - used))
                asked = format_size(size_bytes)
                raise OutOfDeviceMemory(f"{device_id}: {asked} asked, {free} free")
            self._held[handle.handle_id] = (pool, size_bytes)
        try:
            buffer = make()  # may block: other devices' memory must not wait for it
        except BaseException:
            with self._lock:
                self._held.pop(handle.handle_id, None)
            raise
        with self._lock:
            self._held[handle.handle_id] = (pool, size_bytes)  # again: all may be cleared by now
            self._live[handle.handle_id] = (handle, buffer)
        return handle

    def get(self, handle: MemoryHandle, offset_bytes: int, size_bytes: int) -> Buffer:
        """The buffer of a handle, when the range lies within it.

        Raises:
            InvalidHandle: when it was freed before or is not of this backend.
            BackendError: when the range reaches beyond its end.

        """
        check_whole("offset_bytes", offset_bytes)
        check_whole("size_bytes", size_bytes)
        with self._lock:
            found = self._live.get(handle.handle_id)
        if found is None:
            raise _unknown(handle)
        if offset_bytes + size_bytes > found[0].size_bytes:
            end = offset_bytes + size_bytes
            has = found[0].size_bytes
            raise BackendError(f"bytes {offset_bytes}..{end} reach beyond the {has} bytes there")
        return found[1]

    def remove(self, handle: MemoryHandle) -> Buffer:
        """Forget a handle and return its buffer.

        Raises:
            InvalidHandle: when it was freed before or is not of this backend.

        """
        with self._lock:
            found = self._live.pop(handle.handle_id, None)
            self._held.pop(handle.handle_id, None)
        if found is None:
            raise _unknown(handle)
        return found[1]

    def clear(self) -> list[Buffer]:
        """Forget every handle and return the buffers."""
        with self._lock:
            buffers = [buffer for _, buffer in self._live.values()]
            self._live.clear()
            self._held.clear()
        return buffers


def _unknown(handle: MemoryHandle) -> InvalidHandle:
    return InvalidHandle(f"no memory {handle.handle_id} here: freed before, or of another backend")
