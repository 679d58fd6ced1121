"""Turns: how a loop of short calls leaves time to the other tasks of its event loop."""

from __future__ import annotations

import threading
import time

# A checkpoint costs more than keeping a sample does. This is far below what a person or a
# deadline notices, and a thousand times the length of a call.
TURN_SECONDS = 0.001


class Turns:
    """Gives other tasks a turn when this thread's event loop gave none for ``TURN_SECONDS``.

    A call that comes alone therefore always gives one. A cancellation arrives at a call that
    gives a turn; without a turn no other task could have asked for it.
    """

    def __init__(self) -> None:
        self._given = threading.local()

    def due(self) -> bool:
        """Whether :meth:`give` should be awaited before going on."""
        try:
            return time.perf_counter() - self._given.at >= TURN_SECONDS
        except AttributeError:
            return True

    async def give(self) -> None:
        """Let every task that is ready run once."""
        from anyio import lowlevel

        await lowlevel.checkpoint()
        self._given.at = time.perf_counter()
