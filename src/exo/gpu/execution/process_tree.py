"""A process and all that it started, and how to end them together."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

logger = logging.getLogger(__name__)

# What does not end on SIGTERM by then is killed.
GRACE_SECONDS = 5.0

# Nobody but its parent is told of a process's end; the others have to look.
_LOOK_SECONDS = 0.02


def process_tree(root_pid: int) -> frozenset[int]:
    """A process and all its descendants that are alive; empty where it is gone."""
    return frozenset(process.pid for process in _members(root_pid))


def end_tree(root_pid: int, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """End a process and all its descendants: asked first, killed after a while.

    It reaps none of them, so that whoever started the process hears of its end.
    """
    doomed = _members(root_pid)
    for process in doomed:
        _quietly(process.terminate)
        # What is stopped hears of it when it goes on.
        _quietly(process.resume)
    ends = time.monotonic() + grace_seconds
    while any(_alive(process) for process in doomed) and time.monotonic() < ends:
        time.sleep(_LOOK_SECONDS)
    # What they started meanwhile goes with them.
    for process in {*doomed, *_members(root_pid)}:
        if _alive(process):
            _quietly(process.kill)


def _members(root_pid: int) -> list[psutil.Process]:
    import psutil

    try:
        root = psutil.Process(root_pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _quietly(act: Callable[[], None]) -> None:
    import psutil

    try:
        act()
    except psutil.Error as error:
        logger.debug("already gone: %s", error)
