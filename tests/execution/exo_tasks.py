"""Stands for exo's tasks and its engine, as the runner's process imports them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import awkward
import msgspec


class TaskId(str):
    """A name of a task."""

    __slots__ = ()


class Task(msgspec.Struct, frozen=True):
    """What exo sends to a runner."""

    task_id: TaskId
    kind: str
    argument: Any


def handle(task: Task) -> Iterator[Any]:
    """The engine."""
    match task.kind:
        case "count":
            yield from range(task.argument)
        case "exit":
            os._exit(task.argument)
        case "close":
            awkward.close_every_socket(0)
        case "fail":
            raise ValueError(task.argument)
        case "sleep":
            time.sleep(task.argument)
        case "wait":
            yield os.getpid()
            while True:
                time.sleep(60)
