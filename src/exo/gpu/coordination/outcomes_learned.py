"""What an executor's work took, a chunk at a time, until it is kept at the executor's end."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exo.gpu.coordination.cargo import Sent, Slot

# Of each kind on each device, the newest: as many as a forecast looks back on.
CHUNKS_KEPT = 20

# A program that makes functions without end is not remembered without end.
KINDS_KEPT = 100

_NAMELESS = "<lambda>"


class OutcomesLearned:
    """Chunks that ended well, by kind and device. All calls come from the dispatcher's thread."""

    def __init__(self, kind: str) -> None:
        """``kind`` is that of all work; without one a function's name is its kind."""
        self._kind = kind
        self._chunks: dict[tuple[str, str], deque[tuple[int, float]]] = {}

    def add(self, slot: Slot, sent: Sent, seconds: float) -> None:
        """Note a chunk that a slot is through with."""
        if sent.failed or not sent.reported:
            return
        kind = self._kind or sent.name
        if not kind or _NAMELESS in kind:
            return
        cell = kind, slot.device.hardware_id
        chunks = self._chunks.get(cell)
        if chunks is None:
            if len(self._chunks) >= KINDS_KEPT:
                return
            chunks = self._chunks[cell] = deque(maxlen=CHUNKS_KEPT)
        chunks.append((sent.reported, seconds))

    def keep(self) -> None:
        """Write it down and forget it; what cannot be written is told in the log."""
        if not self._chunks:
            return
        from exo.gpu.nodes.experience import Ended, Experience, experience_path

        ended = [
            Ended(kind=kind, hardware_id=hardware_id, seconds=seconds, items=items)
            for (kind, hardware_id), chunks in self._chunks.items()
            for items, seconds in chunks
        ]
        self._chunks.clear()
        Experience(experience_path(os.environ)).learn(ended)
