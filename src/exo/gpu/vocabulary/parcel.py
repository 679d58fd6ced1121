"""Pickled values on their way between processes; large ones travel beside the pickle.

Standard library only, since the child reads it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Parcel(NamedTuple):
    """One value: its pickle (protocol 5) in pieces, and the buffers that go out of band.

    Pieces and buffers refer to the value's own memory where they are large: nothing is copied
    until they are sent, and the value must not change before.
    """

    pieces: tuple[Any, ...]
    buffers: tuple[Any, ...] = ()
    by_value: bool = False
    """Whether it may hold functions or globals of the caller's ``__main__``."""

    @property
    def size_bytes(self) -> int:
        """What has to be moved."""
        return sum(map(size_of, self.pieces)) + sum(map(size_of, self.buffers))


class Batch(NamedTuple):
    """Several values: as the one pickle of their list where they are plain, else a parcel each.

    Plain values (None, numbers, short texts) hold nothing of each other and can always be read,
    so it makes no difference to anybody that they travel together.
    """

    size: int
    plain: bytes | None = None
    parcels: tuple[Parcel, ...] = ()

    @property
    def size_bytes(self) -> int:
        """What has to be moved."""
        return len(self.plain or b"") + sum(parcel.size_bytes for parcel in self.parcels)


def size_of(piece: Any) -> int:
    """Bytes of a bytes-like object, whatever the size of its items."""
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)
