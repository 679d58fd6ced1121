"""Runs of results and pieces of work as one value: taken apart only where they must be."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import msgspec

from exo.gpu.vocabulary.job import Ending, Outcome, Work
from exo.gpu.vocabulary.parcel import Batch

if TYPE_CHECKING:
    from exo.gpu.vocabulary.parcel import Parcel


class Successes(Sequence[Outcome]):
    """Outcomes of items that one slot ran one after the other; reads as a sequence of them."""

    __slots__ = ("_moments", "_origin", "_values", "batch", "items")

    def __init__(self, items: Sequence[int], batch: Batch, origin: float, moments: bytes) -> None:
        """``moments`` are doubles, seconds from the ``origin``: the first start, then each end."""
        self.items = items
        self.batch = batch
        self._origin = origin
        self._moments: bytes | array[float] = moments
        self._values: list[Any] | None = None

    def __len__(self) -> int:
        """How many."""
        return len(self.items)

    @property
    def times(self) -> tuple[float, bytes]:
        """The origin and the moments that it was made of."""
        moments = self._moments
        return self._origin, moments if isinstance(moments, bytes) else moments.tobytes()

    def started_at(self, place: int) -> float:
        """Unix seconds; the item before it ended then."""
        return self._moment(place)

    def ended_at(self, place: int) -> float:
        """Unix seconds."""
        return self._moment(place + 1)

    def payload(self, place: int) -> bytes | Parcel:
        """What one item's result is made from."""
        if self.batch.plain is None:
            return self.batch.parcels[place]
        values = self._values = self._values or pickle.loads(self.batch.plain)
        return pickle.dumps(values[place], 5)

    @overload
    def __getitem__(self, place: int) -> Outcome: ...
    @overload
    def __getitem__(self, place: slice) -> list[Outcome]: ...
    def __getitem__(self, place: int | slice) -> Outcome | list[Outcome]:
        """The outcome of one item, or of some."""
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return Outcome(
            item=self.items[place],
            ending=Ending.SUCCEEDED,
            started_at=self._moment(place),
            ended_at=self._moment(place + 1),
            payload=self.payload(place),
        )

    def _moment(self, number: int) -> float:
        if isinstance(self._moments, bytes):
            self._moments = array("d", self._moments)
        return self._origin + self._moments[number]


def part_of(work: Work, places: Sequence[int]) -> Work:
    """A piece of work with only these of its items, in this order."""
    batch = work.batch
    if batch is not None and batch.plain is not None:
        values = pickle.loads(batch.plain)
        batch = Batch(len(places), plain=pickle.dumps([values[place] for place in places], 5))
    elif batch is not None:
        batch = Batch(len(places), parcels=tuple(batch.parcels[place] for place in places))
    return msgspec.structs.replace(
        work,
        items=tuple(work.items[place] for place in places),
        payloads=tuple(work.payloads[place] for place in places if work.payloads),
        batch=batch,
    )
