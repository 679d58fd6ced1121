"""What a command printed on another machine, where it is too much to send unasked."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any, Protocol

from exo.gpu.execution.command import OutputFile

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


def brought(side: Side, number: int, size_bytes: int) -> OutputFile:
    """All of it, in a file of this machine: from then on its node may die.

    Raises:
        NodeLost: when the node is gone.

    """
    with tempfile.TemporaryFile(prefix="exo-gpu-") as file:
        at = 0
        while at < size_bytes:
            piece: bytes = side.ask("answer", "read_output", number, at, PIECE_BYTES)
            if not piece:
                break
            file.write(piece)
            at += len(piece)
        file.flush()
        side.order("close_output", number)
        return OutputFile(os.dup(file.fileno()), at)
