"""Length-prefixed frames on a private socket; standard library only, since the child reads it.

What is large travels beside the socket, in memory that both processes map.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

from exo.gpu.execution import segments

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

# Kind, whether a segment's descriptor comes with it, how many blobs, size of the payload.
_HEADER = struct.Struct(">BBIQ")
_SIZE = struct.Struct(">Q")

# Below this the copy is cheaper than a second call.
_JOINED_BYTES = 64 * 1024


class Frame(IntEnum):
    """What a frame carries. Payloads are pickles of plain tuples and bytes."""

    SETUP = 1
    """To the worker, first: (sys.path, initializer or None)."""
    FUNCTION = 2
    """To the worker: (function number, flat batch of the one function)."""
    WORK = 3
    """To the worker: (work number, function number or None, whether each item is the only argument,
    flat batch of the items, stream credits)."""
    PING = 4
    """To the worker, on its second socket: whether it is there."""
    CANCEL = 5
    """To the worker, on its second socket: (work number, place of the item)."""
    CREDIT = 6
    """To the worker, on its second socket: (work number, how many chunks more it may send)."""
    RECALL = 7
    """To the worker, on its second socket: number of the work whose waiting items it gives back."""
    READY = 10
    """From the worker: its pid, once it can take work."""
    REFUSED = 11
    """From the worker: why it cannot take work; it exits next."""
    OUTCOMES = 12
    """From the worker: what ended, in order; see :mod:`exo.gpu.execution.item_loop`."""
    IDLE = 13
    """From the worker: the last of what ended; nothing of the work is left."""
    ACKNOWLEDGED = 14
    """From the worker: it took up a stream."""
    CHUNK = 15
    """From the worker: the pickle of the next chunk of a stream."""
    PONG = 16
    """From the worker, on its second socket: the number of the work that it is at, or None."""


def send_frame(
    stream: socket.socket, kind: Frame, payload: bytes, blobs: Sequence[Any] = ()
) -> None:
    """Write one frame; blocks while the other side does not read.

    A blob is a bytes-like object or a tuple of them, which arrives as one. They travel in shared
    memory where there is any, else over the socket.

    Raises:
        OSError: when the other side is gone.

    """
    pieces: list[tuple[Any, ...]] = [
        cast("tuple[Any, ...]", blob) if isinstance(blob, tuple) else (blob,) for blob in blobs
    ]
    sizes = [sum(map(segments.size_of, blob)) for blob in pieces]
    segment = segments.write(pieces, sizes) if blobs else None
    header = _HEADER.pack(kind, segment is not None, len(sizes), len(payload))
    header += b"".join(map(_SIZE.pack, sizes))
    if segment is not None:
        try:
            segments.send(stream, header, segment)
        finally:
            segments.close(segment)
        stream.sendall(payload)
        return
    if len(payload) < _JOINED_BYTES:
        stream.sendall(header + payload)
    else:
        stream.sendall(header)
        stream.sendall(payload)
    for piece in (one for blob in pieces for one in blob):
        stream.sendall(piece)


def receive_frame(stream: socket.socket) -> tuple[Frame, bytearray] | None:
    """Read one frame that has no blobs, or None when the other side closed."""
    frame = receive_with_blobs(stream)
    return None if frame is None else frame[:2]


def receive_with_blobs(
    stream: socket.socket,
) -> tuple[Frame, bytearray, list[memoryview]] | None:
    """Read one frame and its blobs, or None when the other side closed between or within frames.

    Blobs are writable, nobody else sees them, and the memory goes back with the last view of it.
    """
    header, descriptors = segments.receive(stream, _HEADER.size)
    try:
        if header is None:
            return None
        kind, in_segment, count, size = _HEADER.unpack(header)
        table = _receive(stream, count * _SIZE.size) if count else bytearray()
        if table is None:
            return None
        sizes = [one for (one,) in _SIZE.iter_unpack(table)]
        payload = _receive(stream, size)
        if payload is None:
            return None
        if in_segment:
            return Frame(kind), payload, segments.read(descriptors, sizes)
    finally:
        for descriptor in descriptors:
            segments.close(descriptor)
    blobs = [_receive(stream, one) for one in sizes]
    if any(blob is None for blob in blobs):
        return None
    return Frame(kind), payload, [memoryview(blob) for blob in blobs if blob is not None]


def _receive(stream: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        try:
            count = stream.recv_into(view[filled:])
        except ConnectionError:
            return None
        if count == 0:
            return None
        filled += count
    return data
