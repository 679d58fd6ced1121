"""What exo and its runners say to each other, by structure: tasks in, events out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Protocol

import msgspec

# Enough to recognise a task that is sent twice; exo repeats one within seconds.
REMEMBERED = 1024


class Task(Protocol):
    """What exo gives a runner to do."""

    @property
    def task_id(self) -> str:
        """Its name; exo's is a subclass of str."""
        ...


class EventSink(Protocol):
    """Where events go, as anyio's and exo's senders take them."""

    async def send(self, item: Any, /) -> None:
        """Take one; one that waits holds the runner back."""
        ...


class TaskStatus(StrEnum):
    """As exo names them."""

    RUNNING = "Running"
    COMPLETE = "Complete"
    TIMED_OUT = "TimedOut"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class RunnerStatus(StrEnum):
    """As exo names them; the others are stages of its own models."""

    CONNECTING = "Connecting"
    READY = "Ready"
    RUNNING = "Running"
    SHUTTING_DOWN = "ShuttingDown"
    SHUTDOWN = "Shutdown"
    FAILED = "Failed"


class TaskAcknowledged(msgspec.Struct, frozen=True):
    """The runner took a task up."""

    task_id: str


class ChunkGenerated(msgspec.Struct, frozen=True):
    """A task yielded something."""

    task_id: str
    chunk: Any


class TaskStatusUpdated(msgspec.Struct, frozen=True):
    """A task is in another state; the last one of each task is terminal."""

    task_id: str
    task_status: TaskStatus
    error_message: str = ""


class RunnerStatusUpdated(msgspec.Struct, frozen=True):
    """The runner is in another state."""

    runner_status: RunnerStatus
    error_message: str = ""


class RecentIds(Iterable[str]):
    """A set that remembers the newest only."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, task_id: str) -> None:
        """Remember this one, and forget the oldest where there are too many."""
        self._ids[task_id] = None
        while len(self._ids) > self._most:
            self._ids.popitem(last=False)

    def __contains__(self, task_id: object) -> bool:
        """Whether it is remembered."""
        return task_id in self._ids

    def __iter__(self) -> Iterator[str]:
        """Oldest first."""
        return iter(self._ids)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._ids)
