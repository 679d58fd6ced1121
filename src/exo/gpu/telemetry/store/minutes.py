"""Which minutes are open, what is known of them in memory, and what a flush does with a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.telemetry.store.rows import Rows, join, write_minutes, write_pending

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exo.gpu.database import Connection

# A minute is over when nothing came for it for so long: senders' clocks differ, samples are late.
IDLE_SECONDS = 15.0
# At most so many are open at once, the most recently touched: senders may disagree on the time.
MOST_OPEN = 4
# And so many samples (about 85 MB): beyond, the minutes untouched for longest are written.
MOST_OPEN_ROWS = 500_000


class _Minute(msgspec.Struct):
    """The samples of one minute; ``touched_at`` is monotonic seconds."""

    parts: list[Rows]
    touched_at: float

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class Plan(msgspec.Struct, frozen=True):
    """What one flush writes; nothing of it has happened before :meth:`OpenMinutes.accept`."""

    over: Rows | None
    """Samples of minutes that are over."""
    open: dict[int, Rows]
    """New samples of minutes that go on."""
    after: dict[int, _Minute]

    def write(self, connection: Connection) -> None:
        """Write it, within the caller's transaction."""
        if self.over is not None:
            write_minutes(connection, self.over)
        for minute, rows in self.open.items():
            write_pending(connection, minute, rows)


class OpenMinutes:
    """The minutes that are not over, by number; all of it is on disk as well, in ``pending``."""

    def __init__(self, parts: Iterable[tuple[int, Rows]], *, now: float) -> None:
        """Start from what an earlier writer left; ``now`` is monotonic seconds."""
        self._minutes: dict[int, _Minute] = {}
        for minute, rows in parts:
            self._minutes.setdefault(minute, _Minute([], now)).parts.append(rows)

    def plan(self, rows: Rows, *, now: float) -> Plan:
        """What to do with new samples, in the order of their arrival."""
        import numpy as np

        minutes = rows.minutes
        values, last_places = np.unique(minutes[::-1], return_index=True)
        arrival: list[int] = values[np.argsort(-last_places)].tolist()  # the last touched is last
        new = {minute: rows.take(minutes == minute) for minute in arrival}
        after = {minute: one for minute, one in self._minutes.items() if minute not in new}
        for minute in arrival:
            known = self._minutes.get(minute)
            after[minute] = _Minute([*(known.parts if known else ()), new[minute]], now)
        over = _that_are_over(after, now)
        closing = [part for minute in over for part in after.pop(minute).parts]
        return Plan(
            join(closing) if closing else None,
            {minute: part for minute, part in new.items() if minute in after},
            after,
        )

    def accept(self, plan: Plan) -> None:
        """Go on from a plan that was written."""
        self._minutes = plan.after

    def write_all(self, connection: Connection) -> None:
        """Write every open minute anew, into a file that has none of them."""
        for minute, one in self._minutes.items():
            write_pending(connection, minute, join(one.parts))


def _that_are_over(minutes: dict[int, _Minute], now: float) -> list[int]:
    """The minutes to close; ``minutes`` are in the order in which they were last touched."""
    order = list(minutes)
    excess = sum(map(len, minutes.values())) - MOST_OPEN_ROWS
    over: list[int] = []
    for place, minute in enumerate(order):
        idle = now - minutes[minute].touched_at > IDLE_SECONDS
        if idle or len(order) - place > MOST_OPEN or excess > 0:
            over.append(minute)
            excess -= len(minutes[minute])
    return over
