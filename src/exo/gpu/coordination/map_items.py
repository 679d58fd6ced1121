"""Where the items of a map come from: sequences by place, anything else as its caller asks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from exo.gpu.scheduling.scheduler import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Slices of these run none of the caller's code, so that any thread may take them.
_SAFE = (list, tuple, range)


class Items(Protocol):
    """The items of a map, taken from the front."""

    anywhere: bool
    """Whether any thread may take items, because none of the caller's code runs."""
    error: Exception | None
    """What the caller's iterable raised, after the items that were taken."""

    @property
    def rest(self) -> int:
        """How many are left; :data:`UNKNOWN` where only the end will tell."""
        ...

    def take(self, count: int) -> list[Any]:
        """The next ones, fewer at the end."""
        ...


class SequenceItems:
    """Items of lists, tuples and ranges; those of several as tuples, as long as the shortest."""

    anywhere = True
    error = None

    def __init__(self, sequences: Sequence[Sequence[Any]]) -> None:
        # What is done to a list later is no longer our concern.
        self._sequences = [list(one) if isinstance(one, list) else one for one in sequences]
        self._place = 0
        self._end = min(map(len, self._sequences))

    @property
    def rest(self) -> int:
        """How many are left."""
        return self._end - self._place

    def take(self, count: int) -> list[Any]:
        """The next ones, fewer at the end."""
        stop = min(self._place + count, self._end)
        slices = [one[self._place : stop] for one in self._sequences]
        self._place = stop
        return list(slices[0] if len(slices) == 1 else zip(*slices, strict=True))


class IteratorItems:
    """Items of any iterables, whose code runs in the thread that takes them."""

    anywhere = False

    def __init__(self, iterables: Sequence[Iterable[Any]]) -> None:
        self._iterator: Iterator[Any] = (
            iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)
        )
        self._over = False
        self.error: Exception | None = None

    @property
    def rest(self) -> int:
        """0 at the end, else not known."""
        return 0 if self._over else UNKNOWN

    def take(self, count: int) -> list[Any]:
        """The next ones, fewer at the end or where the iterable raises."""
        taken: list[Any] = []
        try:
            for item in islice(self._iterator, count):
                taken.append(item)  # noqa: PERF402 - what came before an error is kept
        except Exception as error:  # noqa: BLE001 - the reader of the results is told
            self.error = error
        self._over = len(taken) < count
        return taken


def items_of(iterables: Sequence[Iterable[Any]]) -> Items:
    """The items of these iterables, side by side."""
    if all(type(one) in _SAFE for one in iterables):
        return SequenceItems(iterables)  # type: ignore[arg-type]
    return IteratorItems(iterables)
