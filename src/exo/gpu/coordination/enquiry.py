"""Who holds what, who waits, who works where: asked on a thread of its own, since it is dear."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.errors import ExoGpuError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.watch import WatchedNode
    from exo.gpu.scheduling.job_queue import Turn
    from exo.gpu.vocabulary.lease import Lease, Waiter
    from exo.gpu.vocabulary.process import ProcessList

logger = logging.getLogger("exo.gpu.coordination.enquiry")

# Who holds what is dearer to learn than a sample, and changes less often.
ASK_SECONDS = 2.0

# What is dear is done in a tenth of the time at most.
_DEAR_SHARE = 10.0

_STOP_SECONDS = 1.0


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered last, and in ``notes`` what could not be."""

    leases: tuple[Lease, ...] = ()
    line: tuple[tuple[Waiter, Turn], ...] = ()
    lists: tuple[ProcessList, ...] = ()
    notes: tuple[str, ...] = ()


class Enquiry:
    """Asks a node over and over; samples do not wait for a driver or a machine that is slow."""

    def __init__(self, node: Callable[[], WatchedNode]) -> None:
        """Nothing is asked yet; ``node`` gives who is asked, each time anew."""
        self._node = node
        self._answers = Answers()
        self._first = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exo-gpu-enquiry", daemon=True)

    @property
    def answers(self) -> Answers:
        """What was answered last; nothing before the first time."""
        return self._answers

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def wait_first(self, timeout_seconds: float) -> None:
        """Wait for the first answers, so long at most."""
        self._first.wait(timeout_seconds)

    def stop(self) -> None:
        """Ask no more; a call that hangs is left behind."""
        self._ended.set()
        self._first.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        pause_seconds = 0.0
        while not self._ended.wait(pause_seconds):
            began = time.monotonic()
            self._answers = self._ask()
            self._first.set()
            took = time.monotonic() - began
            pause_seconds = max(ASK_SECONDS - took, (_DEAR_SHARE - 1) * took)

    def _ask(self) -> Answers:
        node, notes = self._node(), list[str]()
        leases, line, lists = (), (), self._answers.lists
        try:
            leases, line = node.leases(), node.line()
        except ExoGpuError as error:
            notes.append(f"leases and cordons are not shown: {error}")
        try:
            lists = node.processes()
        except (ExoGpuError, OSError) as error:
            logger.warning("processes are not known: %s", error)
            notes.append(f"processes are not known: {error}")
        return Answers(leases=leases, line=line, lists=lists, notes=tuple(notes))
