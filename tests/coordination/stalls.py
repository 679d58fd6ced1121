"""How long work keeps the event loop from turning, told apart from waiting for a busy machine."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import lowlevel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ATTEMPTS = 5


def waited_for_a_core() -> float:
    """Seconds this thread was ready to run while others had the cores; 0 where nobody counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


async def _longest_gap(work: Callable[[], Awaitable[None]]) -> float:
    longest, turns = 0.0, 0

    async def tick() -> None:
        nonlocal longest, turns
        while True:
            turned, waited = time.monotonic(), waited_for_a_core()
            await lowlevel.checkpoint()
            gap = time.monotonic() - turned - (waited_for_a_core() - waited)
            longest, turns = max(longest, gap), turns + 1

    async def turn() -> None:
        before = turns
        while turns == before:
            await lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await turn()
        await work()
        await turn()
        group.cancel_scope.cancel()
    return longest


async def stall_seconds(work: Callable[[], Awaitable[None]], *, limit: float) -> float:
    """The longest time for which ``work`` kept other tasks waiting, in its best of a few runs.

    A call that blocks does so in every run; what the machine does to us, it does in some.
    """
    best = float("inf")
    gc.collect()
    gc.freeze()
    try:
        for _ in range(ATTEMPTS):
            best = min(best, await _longest_gap(work))
            if best <= limit:
                break
    finally:
        gc.unfreeze()
    return best
