"""What a lost node leaves open, in the words in which a slot would have told it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.job import Cause, SlotDied, SlotEvent, SlotFailed, SlotIdle, SlotRecalled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class SentWork(msgspec.Struct, eq=False):
    """A work in the hands of a far slot: its items before ``done`` are reported.

    Those from ``ends`` on were taken back.
    """

    work_id: int
    items: Sequence[int]
    done: int
    ends: int


def endings_of(number: int, works: Iterable[SentWork], reason: str) -> list[SlotEvent]:
    """What is to be told of a slot that is lost with its node.

    The one item that it was at may be what ended the node: it has had a try. What was behind it
    never began. The slot is given up.
    """
    events: list[SlotEvent] = []
    open_works = list(works)
    while open_works and open_works[0].done >= open_works[0].ends:
        events.append(SlotIdle(number, open_works.pop(0).work_id))
    if open_works:
        first = open_works.pop(0)
        at, *behind = first.items[first.done : first.ends]
        if behind:
            events.append(SlotRecalled(number, first.work_id, tuple(behind)))
        events.append(SlotDied(number, first.work_id, (at,), reason, time.time(), Cause.CLOSED))
    rest = tuple(open_works[0].items[: open_works[0].ends]) if open_works else ()
    events.append(SlotFailed(number, reason, rest))
    return events
