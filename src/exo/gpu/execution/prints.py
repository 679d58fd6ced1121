"""What the processes of a slot print, handed on as it comes, with the item that printed it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.job import SlotOutput

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 65536  # what a pipe holds on Linux


class Prints:
    """Reads both streams of one process after the other; a sink that blocks holds it back.

    Set :attr:`item` only after :meth:`drain`, so that nothing gets the name of the next one.
    """

    def __init__(self, slot_id: int, sink: Callable[[SlotOutput], None]) -> None:
        self.item: int | None = None
        self._slot_id = slot_id
        self._sink = sink
        self._lock = threading.Lock()
        self._ours: tuple[int, ...] = ()
        self._theirs: tuple[int, ...] = ()
        self._wake: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> tuple[int, int]:
        """Standard output and standard error for the process that starts next."""
        pairs = os.pipe(), os.pipe()
        self._ours = tuple(pair[0] for pair in pairs)
        self._theirs = tuple(pair[1] for pair in pairs)
        for number in self._ours:
            os.set_blocking(number, False)
        return pairs[0][1], pairs[1][1]

    def started(self) -> None:
        """The process has its ends now, or could not be started."""
        for number in self._theirs:
            os.close(number)
        self._wake = os.pipe()
        self._thread = threading.Thread(
            target=self._read, args=(self._wake[0],), name="exo-gpu-prints", daemon=True
        )
        self._thread.start()

    def drain(self) -> None:
        """Hand on all that has been printed so far."""
        with self._lock:
            for place, number in enumerate(self._ours):
                self._hand_on(place, number)

    def ended(self) -> None:
        """The process is gone; what it left running is not waited for. Harmless twice."""
        if self._wake is None or self._thread is None:
            return
        self.drain()
        wake, self._wake = self._wake, None
        os.close(wake[1])
        self._thread.join()
        for number in (wake[0], *self._ours):
            os.close(number)
        self._ours = ()

    def _read(self, wake: int) -> None:
        poll = select.poll()
        for number in (*self._ours, wake):
            poll.register(number, select.POLLIN)
        while ready := poll.poll():
            for number, _ in ready:
                if number == wake:
                    return
                with self._lock:
                    if not self._hand_on(self._ours.index(number), number):
                        poll.unregister(number)

    def _hand_on(self, place: int, number: int) -> bool:
        """Read until nothing is left; False at the end of the stream."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(number, _READ_BYTES):
                self._sink(SlotOutput(self._slot_id, self.item, place == 1, data))
            return False
        return True
