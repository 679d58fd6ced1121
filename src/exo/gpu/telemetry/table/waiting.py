"""Samples that wait to become columns."""

from __future__ import annotations

from exo.gpu.vocabulary.metrics import GPUMetrics


class Waiting:
    """Samples in order of arrival, with the row and the time of receipt of each.

    Three lists rather than one of tuples: nothing is made for a sample, so that the garbage
    collector is not called for it either.
    """

    __slots__ = ("receipts", "rows", "samples")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.receipts: list[float] = []
        self.samples: list[GPUMetrics] = []

    def __len__(self) -> int:
        return len(self.samples)

    def without(self, row: int) -> Waiting:
        """All but those of one row."""
        kept = Waiting()
        for number, received_at, sample in zip(self.rows, self.receipts, self.samples, strict=True):
            if number != row:
                kept.rows.append(number)
                kept.receipts.append(received_at)
                kept.samples.append(sample)
        return kept
