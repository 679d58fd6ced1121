"""Virtual time: what happens next, the earliest first."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Event = TypeVar("Event")


class EventQueue(Generic[Event]):
    """Events with their times; those of one moment come in the order in which they were planned."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._planned = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    def plan(self, at_seconds: float, event: Event) -> None:
        """Let something happen then, or now where that is past."""
        self._planned += 1
        at_seconds = max(at_seconds, self.now_seconds)
        heapq.heappush(self._heap, (at_seconds, self._planned, event))

    def next_moment(self) -> list[Event]:
        """Go on to the next time at which anything happens: all that does. Empty at the end."""
        if not self._heap:
            return []
        self.now_seconds = self._heap[0][0]
        events: list[Event] = []
        while self._heap and self._heap[0][0] == self.now_seconds:
            events.append(heapq.heappop(self._heap)[2])
        return events
