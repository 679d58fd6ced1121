"""What a lost node leaves open, in the words in which a slot would have told it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.successes import Successes
from exo.gpu.vocabulary.job import (
    Cause,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotIdle,
    SlotOutcomes,
    SlotRecalled,
)

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence


class SentWork(msgspec.Struct, eq=False):
    """A work in the hands of a far slot, and which of its items are closed: told, or taken back."""

    work_id: int
    items: Sequence[int]
    closed: set[int] = msgspec.field(default_factory=set[int])

    @property
    def open(self) -> tuple[int, ...]:
        """The items of which nothing was heard."""
        closed = frozenset(self.closed)
        return tuple(item for item in self.items if item not in closed)


def note(works: deque[SentWork], event: SlotEvent) -> None:
    """Keep count of what is still open by what a slot says."""
    if isinstance(event, SlotFailed):
        works.clear()
    elif isinstance(event, SlotDied) and works:
        works.popleft()
    elif isinstance(event, SlotOutcomes) and works:
        # Not always those that stand first: some were cancelled before.
        works[0].closed.update(_items_of(event))
    elif isinstance(event, (SlotRecalled, SlotIdle)):
        for work in [one for one in works if one.work_id == event.work_id]:
            if isinstance(event, SlotRecalled):
                work.closed.update(event.items)
            else:
                works.remove(work)


def _items_of(event: SlotOutcomes) -> Iterable[int]:
    outcomes = event.outcomes
    if isinstance(outcomes, Successes):
        return outcomes.items  # without making outcomes of them
    return (outcome.item for outcome in outcomes)


def endings_of(number: int, works: Iterable[SentWork], reason: str) -> list[SlotEvent]:
    """What is to be told of a slot that is lost with its node.

    The one item that it was at may be what ended the node: it has had a try. What was behind it
    never began. The slot is given up.
    """
    events: list[SlotEvent] = []
    died: SlotEvent | None = None
    for work in works:
        left = work.open
        if left and died is None:
            died = SlotDied(number, work.work_id, left[:1], reason, time.time(), Cause.CLOSED)
            if left[1:]:
                events.append(SlotRecalled(number, work.work_id, left[1:]))
            events.append(died)
            continue
        if left:
            events.append(SlotRecalled(number, work.work_id, left))
        events.append(SlotIdle(number, work.work_id))
    events.append(SlotFailed(number, reason, ()))
    return events
