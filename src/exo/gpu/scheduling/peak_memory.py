"""The memory that a kind of work was seen to take, and what to ask for: advice, no rule."""

from __future__ import annotations

import math

import msgspec

from exo.gpu.vocabulary.forecast import MemoryAdvice

# Enough for a 99th percentile that is not the largest, and for a kind that changes to be seen.
PEAKS_KEPT = 200

# A driver is asked once a second: what lies between two looks is not seen.
MARGIN = 0.10
LEAST_MARGIN_BYTES = 64 * 2**20

_QUANTILE = 0.99


class Peaks(msgspec.Struct, kw_only=True):
    """The newest peaks of a kind of work, in bytes, the newest last."""

    kind: str
    seen_bytes: list[int] = []  # msgspec copies an empty default for each value

    def take(self, peak_bytes: int) -> None:
        """Learn from a run; a peak that is not above 0 teaches nothing: nobody could look."""
        if peak_bytes > 0:
            self.seen_bytes.append(peak_bytes)
            del self.seen_bytes[:-PEAKS_KEPT]

    @property
    def advice(self) -> MemoryAdvice | None:
        """The 99th percentile and a margin of a tenth, 64 MiB at least; None without any run."""
        if not self.seen_bytes:
            return None
        ranked = sorted(self.seen_bytes)
        seen = ranked[math.ceil(_QUANTILE * len(ranked)) - 1]
        margin = max(math.ceil(seen * MARGIN), LEAST_MARGIN_BYTES)
        return MemoryAdvice(
            kind=self.kind, seen_bytes=seen, advised_bytes=seen + margin, samples=len(ranked)
        )
