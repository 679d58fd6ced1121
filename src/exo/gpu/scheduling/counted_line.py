"""The line before devices that are all alike: who begins next, and who may pass the first.

It decides what :mod:`~exo.gpu.scheduling.job_queue` decides, by counts and expected lengths alone.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

from exo.gpu.scheduling.job_queue import LOOK_AHEAD
from exo.gpu.vocabulary.errors import InvalidValue


class _Waiting(NamedTuple):
    place: float
    number: int
    devices: int
    expected_seconds: float


class _Running(NamedTuple):
    expected_end_seconds: float
    number: int
    devices: int


class CountedLine:
    """Work that waits for so many of the same devices, all at once, and keeps them to its end.

    The first in the line that does not fit is kept a time for: the one at which enough of what
    runs is expected to have ended. Of the next ``look_ahead`` in the line those pass that are
    expected to end before that, or that take devices which the first will not need (EASY
    backfilling, Lifka 1995). With ``look_ahead`` 0 nobody passes.
    """

    def __init__(self, devices: int, *, look_ahead: int = LOOK_AHEAD) -> None:
        self.devices = devices
        self.free = devices
        self._look_ahead = look_ahead
        self._line: list[_Waiting] = []
        self._waiting: dict[int, _Waiting] = {}
        self._running: list[_Running] = []
        self._began: dict[int, _Running] = {}

    def __len__(self) -> int:
        return len(self._line)

    def join(self, number: int, count: int, place: float, expected_seconds: float) -> None:
        """Stand in the line; equal places go by ``number``. Who stands there already moves.

        Raises:
            InvalidValue: for more devices than there are.

        """
        if not 1 <= count <= self.devices:
            raise InvalidValue("count", count, f"within 1..{self.devices}, the devices there are")
        new = _Waiting(place, number, count, expected_seconds)
        old = self._waiting.get(number)
        if old == new:
            return
        if old is not None:
            del self._line[bisect.bisect_left(self._line, old)]
        bisect.insort(self._line, new)
        self._waiting[number] = new

    def end(self, number: int) -> None:
        """Give back the devices of one that began."""
        running = self._began.pop(number)
        del self._running[bisect.bisect_left(self._running, running)]
        self.free += running.devices

    def turn(self, now_seconds: float) -> list[int]:
        """Who begins now, in this order; their devices are taken."""
        began: list[int] = []
        while self._line and self._line[0].devices <= self.free:
            began.append(self._begin(0, now_seconds))
        if self._line and self.free and self._look_ahead:
            began += self._passers(now_seconds)
        return began

    def _passers(self, now_seconds: float) -> list[int]:
        until_seconds, spare = self._kept_for_first(now_seconds)
        began: list[int] = []
        place, last = 1, self._look_ahead
        while place < len(self._line) and place <= last and self.free:
            one = self._line[place]
            ends_before = now_seconds + one.expected_seconds <= until_seconds
            if one.devices > self.free or not (ends_before or one.devices <= spare):
                place += 1
                continue
            if not ends_before:
                spare -= one.devices
            began.append(self._begin(place, now_seconds))
            last -= 1
        return began

    def _kept_for_first(self, now_seconds: float) -> tuple[float, int]:
        """When the first is expected to begin, and how many devices it leaves then."""
        free = self.free
        for running in self._running:
            free += running.devices
            if free >= self._line[0].devices:
                until = max(now_seconds, running.expected_end_seconds)
                return until, free - self._line[0].devices
        raise AssertionError("what runs and what is free is all there is")

    def _begin(self, place: int, now_seconds: float) -> int:
        one = self._line.pop(place)
        del self._waiting[one.number]
        running = _Running(now_seconds + one.expected_seconds, one.number, one.devices)
        bisect.insort(self._running, running)
        self._began[one.number] = running
        self.free -= one.devices
        return one.number
