"""Memory without a name that two processes share; the kernel frees it with the last of them.

Standard library only, since the child reads it. Linux has it (memfd); elsewhere there is none, and
what is large goes over the socket.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.parcel import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

AVAILABLE = hasattr(os, "memfd_create") and hasattr(socket, "SCM_RIGHTS")
"""Whether this system has such memory."""

# Arrays start on a line of the cache, which vector instructions like best.
ALIGNMENT_BYTES = 64

# Linux takes at most so many pieces in one call (IOV_MAX).
_PIECES_A_CALL = 1024

_DESCRIPTOR_BYTES = array.array("i").itemsize


def write(blobs: Sequence[tuple[Any, ...]], sizes: Sequence[int]) -> int | None:
    """The descriptor of new memory that holds the blobs; None where none can be had."""
    if not AVAILABLE:
        return None
    try:
        descriptor = os.memfd_create("exo-gpu", os.MFD_CLOEXEC)
    except OSError:
        return None
    pieces: list[Any] = []
    for blob, size in zip(blobs, sizes, strict=True):
        pieces += blob
        pieces.append(bytes(-size % ALIGNMENT_BYTES))
    try:
        _write_all(descriptor, [memoryview(piece).cast("B") for piece in pieces if len(piece)])
    except OSError:  # no memory is left for it; the socket needs none
        os.close(descriptor)
        return None
    return descriptor


def _write_all(descriptor: int, pieces: list[memoryview]) -> None:
    first = 0
    while first < len(pieces):
        written = os.writev(descriptor, pieces[first : first + _PIECES_A_CALL])
        while first < len(pieces) and written >= size_of(pieces[first]):
            written -= size_of(pieces[first])
            first += 1
        if written:
            pieces[first] = pieces[first][written:]


def read(descriptors: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    """Views of the blobs in received memory, writable; it stays mapped while one of them lives.

    Raises:
        OSError: when it did not arrive or cannot be mapped.

    """
    if len(descriptors) != 1:
        raise OSError("the memory that goes with a frame did not arrive: too many open files?")
    starts: list[int] = []
    end = 0
    for size in sizes:
        starts.append(end)
        end += size + -size % ALIGNMENT_BYTES
    whole = memoryview(_map(descriptors[0], end) if end else bytearray()).cast("B")
    return [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _map(descriptor: int, size: int) -> Any:
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED | _POPULATE, trackfd=False)
    return _map_untracked(descriptor, size)


_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


def _map_untracked(descriptor: int, size: int) -> Any:
    """Before Python 3.13 an ``mmap`` keeps a descriptor open, and of those there are few."""
    import ctypes

    global _libc  # noqa: PLW0603 - loaded with the first large value
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.mmap.restype = ctypes.c_void_p
        _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    flags = mmap.MAP_SHARED | _POPULATE
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))

    mapping = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(mapping, _libc.munmap, address, size).atexit = False
    return mapping


_libc: Any = None


def send(stream: socket.socket, data: bytes, descriptor: int) -> None:
    """Write the bytes, and hand a descriptor over with the first of them.

    Raises:
        OSError: when the other side is gone.

    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    sent = stream.sendmsg([data], rights)
    if sent < len(data):
        stream.sendall(memoryview(data)[sent:])


def receive(stream: socket.socket, size: int) -> tuple[bytes | None, list[int]]:
    """So many bytes, and the descriptors that came with them; None when the other side is gone."""
    data = b""
    descriptors = array.array("i")
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    while len(data) < size:
        try:
            part, ancillary, _, _ = stream.recvmsg(
                size - len(data), socket.CMSG_SPACE(_DESCRIPTOR_BYTES), flags
            )
        except ConnectionError:
            part, ancillary = b"", []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % _DESCRIPTOR_BYTES])
        if not part:
            return None, list(descriptors)
        data += part
    return data, list(descriptors)


def close(descriptor: int) -> None:
    """Let go of a descriptor; what is mapped stays."""
    os.close(descriptor)
