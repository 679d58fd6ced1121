"""What a command printed on another machine, where it is too much to send unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Asked for at once, so that neither side holds more.
PIECE_BYTES = 8 * 1024 * 1024


class Side(Protocol):
    """The node that holds it."""

    @property
    def ask(self) -> Callable[..., Any]:
        """Have its agent answer; see :meth:`~exo.gpu.nodes.cluster.member.Member.ask`."""
        ...

    @property
    def order(self) -> Callable[..., None]:
        """Have something done there, without an answer."""
        ...


class FarOutput:
    """A :class:`~exo.gpu.vocabulary.job.HeldOutput` on another machine; gone with its node."""

    def __init__(self, side: Side, number: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._side = side
        self._number = number

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end.

        Raises:
            NodeLost: when the node is gone.

        """
        pieces: list[bytes] = []
        while count > 0:
            piece: bytes = self._side.ask(
                "answer", "read_output", self._number, offset, min(count, PIECE_BYTES)
            )
            if not piece:
                break
            pieces.append(piece)
            offset, count = offset + len(piece), count - len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of it; harmless twice."""
        self._side.order("close_output", self._number)
