"""Length-prefixed frames on a private socket; standard library only, since the child reads it."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_HEADER = struct.Struct(">BQ")


class Frame(IntEnum):
    """What a frame carries. Payloads are pickles of plain tuples and bytes."""

    SETUP = 1
    """To the worker, first: (sys.path, initializer or None)."""
    FUNCTION = 2
    """To the worker: (function number, pickled function)."""
    WORK = 3
    """To the worker: (work number, function number or None, pickled items, stream credits)."""
    PING = 4
    """To the worker, on its second socket: whether it is there."""
    CANCEL = 5
    """To the worker, on its second socket: (work number, place of the item)."""
    CREDIT = 6
    """To the worker, on its second socket: (work number, how many chunks more it may send)."""
    READY = 10
    """From the worker: its pid, once it can take work."""
    REFUSED = 11
    """From the worker: why it cannot take work; it exits next."""
    OUTCOMES = 12
    """From the worker: [(place in the work, succeeded, start, end, payload), ...]."""
    IDLE = 13
    """From the worker: all items of the work have been reported."""
    ACKNOWLEDGED = 14
    """From the worker: it took up a stream."""
    CHUNK = 15
    """From the worker: the pickle of the next chunk of a stream."""
    PONG = 16
    """From the worker, on its second socket: the number of the work that it is at, or None."""


def send_frame(stream: socket.socket, kind: Frame, payload: bytes) -> None:
    """Write one frame; blocks while the other side does not read.

    Raises:
        OSError: when the other side is gone.

    """
    header = _HEADER.pack(kind, len(payload))
    if len(payload) < 65536:
        stream.sendall(header + payload)
    else:
        stream.sendall(header)
        stream.sendall(payload)


def receive_frame(stream: socket.socket) -> tuple[Frame, bytearray] | None:
    """Read one frame, or None when the other side closed between or within frames."""
    header = _receive(stream, _HEADER.size)
    if header is None:
        return None
    kind, size = _HEADER.unpack(header)
    payload = _receive(stream, size)
    return None if payload is None else (Frame(kind), payload)


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
