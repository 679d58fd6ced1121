"""When each device is asked: a schedule that does not drift, with the time as an argument."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.vocabulary.units import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

# Drivers renew their figures every 100 ms or more seldom: faster polling repeats them.
SHORTEST_CADENCE_SECONDS = 0.01
# A sleeping device is looked at so often, which is often enough to see it wake.
SLEEPING_CADENCE_SECONDS = 5.0
# A device that fails is asked again after at most so long: it is noticed when it comes back.
LONGEST_BACKOFF_SECONDS = 30.0

# Doubling further would change nothing, and overflow in the end.
_MOST_DOUBLINGS = 20
# Multiples of the golden ratio spread dear readings evenly, however many devices there are.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Tick(NamedTuple):
    """A device to be asked now; ``dear`` where its dear readings are due too."""

    device_id: str
    dear: bool


class Turn(NamedTuple):
    """What is due: devices to be asked, and those whose call has just outlasted its deadline."""

    ask: list[Tick]
    overdue: list[str]


class _Plan:
    """One device. Its ticks are ``origin + n * cadence``: no error adds up."""

    __slots__ = (
        "asked_at",
        "asked_dear",
        "cadence",
        "dear_at",
        "dear_origin",
        "failures",
        "origin",
        "overdue",
        "serial",
    )

    def __init__(self, origin: float, cadence: float, dear_origin: float) -> None:
        self.origin = origin
        self.cadence = cadence
        self.dear_origin = dear_origin
        self.dear_at = origin
        self.asked_at: float | None = None
        self.asked_dear = False
        self.overdue = False
        self.failures = 0
        self.serial = 0

    def after(self, asked_at: float, now: float, *, ticks: int) -> float:
        """The tick so many ``ticks`` on, counted from the one nearest to when it was asked."""
        number = math.floor((asked_at - self.origin) / self.cadence + 0.5) + ticks
        if self.origin + number * self.cadence <= now:  # missed ticks are skipped, not made up for
            number = math.floor((now - self.origin) / self.cadence) + 1
            number += self.origin + number * self.cadence <= now  # a quotient rounded down
        return self.origin + number * self.cadence


class Schedule:
    """Says which devices to ask at a given time; at most one call of a device is ever under way.

    All times are seconds of one monotonic clock. A device is due at once when it is added and then
    at every tick of its cadence; while a call is under way its ticks are skipped. After ``n``
    failures in a row it is asked again after about ``2 ** n`` cadences, at most
    :data:`LONGEST_BACKOFF_SECONDS`; ``jitter`` gives numbers in 0..1 that spread those retries.
    Dear readings are due at the tick nearest to every ``slow_cadence_seconds``, at a moment that
    differs from device to device. Not safe for threads.
    """

    def __init__(
        self,
        *,
        jitter: Callable[[], float],
        cadence_seconds: float = 1.0,
        slow_cadence_seconds: float = 10.0,
        deadline_seconds: float = 2.0,
    ) -> None:
        """Nothing is watched yet.

        Raises:
            InvalidValue: for a time that is not a number of seconds, or a cadence too short.

        """
        check_cadence("cadence_seconds", cadence_seconds)
        check_cadence("slow_cadence_seconds", slow_cadence_seconds)
        check_cadence("deadline_seconds", deadline_seconds)
        self._jitter = jitter
        self._cadence = cadence_seconds
        self._slow_cadence = slow_cadence_seconds
        self._deadline = deadline_seconds
        self._plans: dict[str, _Plan] = {}
        # When something is due: a tick, or the deadline of a call. An entry whose serial number is
        # no longer its device's is void, and leaves when its time comes.
        self._agenda: list[tuple[float, int, str]] = []
        self._entries = 0
        self._added = 0
        self._paused = False
        self._held: set[str] = set()

    def add(self, device_id: str, now: float, *, cadence_seconds: float | None = None) -> None:
        """Watch a device from now on; one that is watched already begins anew.

        Raises:
            InvalidValue: for a cadence that is too short.

        """
        cadence = self._cadence if cadence_seconds is None else cadence_seconds
        check_cadence("cadence_seconds", cadence)
        share = self._added * _GOLDEN_RATIO % 1
        self._added += 1
        self._plans[device_id] = _Plan(now, cadence, now + share * self._slow_cadence)
        self._put(device_id, now)

    def remove(self, device_id: str) -> None:
        """Ask it no more; harmless for a device that is not watched."""
        self._plans.pop(device_id, None)
        self._held.discard(device_id)

    def pause(self) -> None:
        """Ask nobody until :meth:`resume`; calls under way keep their deadlines."""
        self._paused = True

    def resume(self, now: float) -> None:
        """Go on: what came due meanwhile is asked once, and then at its ticks as before."""
        self._paused = False
        for device_id in self._held:
            self._put(device_id, now)
        self._held = set()

    def next_at(self) -> float | None:
        """When :meth:`turn` has something to do next; None: not before something is changed."""
        while self._agenda and self._is_void(self._agenda[0]):
            heapq.heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else None

    def turn(self, now: float) -> Turn:
        """What is due; the caller asks, and tells :meth:`answered` however it ends."""
        due = Turn([], [])
        while self._agenda and self._agenda[0][0] <= now:
            entry = heapq.heappop(self._agenda)
            if self._is_void(entry):
                continue
            device_id = entry[2]
            plan = self._plans[device_id]
            if plan.asked_at is not None:
                plan.overdue = True
                plan.failures += 1
                due.overdue.append(device_id)
            elif self._paused:
                self._held.add(device_id)
            else:
                plan.asked_at = now
                plan.asked_dear = now + plan.cadence / 2 >= plan.dear_at
                due.ask.append(Tick(device_id, plan.asked_dear))
                self._put(device_id, now + self._deadline)
        return due

    def is_overdue(self, device_id: str) -> bool:
        """Whether a call of the device is under way that has outlasted its deadline."""
        plan = self._plans.get(device_id)
        return plan is not None and plan.overdue

    def answered(
        self, device_id: str, now: float, *, failed: bool = False, sleeping: bool = False
    ) -> None:
        """A call has returned; one that is overdue counts as failed, whatever it brought."""
        plan = self._plans.get(device_id)
        if plan is None or plan.asked_at is None:
            return
        asked_at, overdue = plan.asked_at, plan.overdue
        plan.asked_at, plan.overdue = None, False
        if failed or overdue:
            plan.failures += not overdue  # which counted when the deadline passed
            self._put(device_id, now + self._backoff_seconds(plan))
            return
        plan.failures = 0
        if plan.asked_dear and not sleeping:
            rounds = (asked_at + plan.cadence / 2 - plan.dear_origin) / self._slow_cadence
            plan.dear_at = plan.dear_origin + (math.floor(rounds) + 1) * self._slow_cadence
        ticks = math.ceil(SLEEPING_CADENCE_SECONDS / plan.cadence) if sleeping else 1
        self._put(device_id, plan.after(asked_at, now, ticks=ticks))

    def _backoff_seconds(self, plan: _Plan) -> float:
        doubled = plan.cadence * 2 ** min(plan.failures, _MOST_DOUBLINGS)
        most = min(doubled, LONGEST_BACKOFF_SECONDS)
        return max(plan.cadence, most * (1 + self._jitter()) / 2)

    def _put(self, device_id: str, at: float) -> None:
        self._entries += 1
        self._plans[device_id].serial = self._entries
        heapq.heappush(self._agenda, (at, self._entries, device_id))

    def _is_void(self, entry: tuple[float, int, str]) -> bool:
        plan = self._plans.get(entry[2])
        return plan is None or plan.serial != entry[1]


def check_cadence(field: str, seconds: float) -> None:
    """Refuse what is no number of seconds, or below :data:`SHORTEST_CADENCE_SECONDS`.

    Raises:
        InvalidValue: naming ``field`` and the value.

    """
    check_number(field, seconds, low=SHORTEST_CADENCE_SECONDS)
