"""What one flush does: samples and events into the file, whole or not at all; on one thread."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.database import immediate
from exo.gpu.telemetry.store.file import OpenFile, open_file, set_aside
from exo.gpu.telemetry.store.identities import Identities
from exo.gpu.telemetry.store.minutes import OpenMinutes, Plan
from exo.gpu.telemetry.store.rows import read_pending, tabulate
from exo.gpu.telemetry.store.upkeep import HistoryLimits, tidy
from exo.gpu.vocabulary.errors import StoreDamaged
from exo.gpu.vocabulary.health import DeviceFault, HealthEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exo.gpu.vocabulary.metrics import GPUMetrics

logger = logging.getLogger("exo.gpu.telemetry.store")

EVENT_KINDS: dict[type[HealthEvent | DeviceFault], str] = {
    HealthEvent: "health",
    DeviceFault: "fault",
}
"""What an event is called on disk."""

# A device is forgotten this long after its last rollup, so that no row of it is left.
_FORGOTTEN_AFTER_SECONDS = 7200.0


class Recorder:
    """The open file and what is known of its open minutes; used by one thread at a time."""

    def __init__(
        self, path: Path, limits: HistoryLimits, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the file, and make it if it is not there; ``clock`` gives Unix seconds.

        Raises:
            StoreTooNew: when a later release wrote it.
            StoreError: naming the file, when it cannot be written.

        """
        self._path = path
        self._limits = limits
        self._clock = clock
        self.identities = Identities()
        self._newest_minute = 0
        self._inode = 0
        self._is_lost = False
        self.opened = self._open_file()
        try:
            self._open_minutes = self._load()
        except StoreDamaged as error:
            aside = self._set_aside(error)
            self.opened = msgspec.structs.replace(self._open_file(), set_aside=aside)
            self._open_minutes = self._load()

    def write(
        self, samples: Sequence[GPUMetrics], events: Sequence[HealthEvent | DeviceFault]
    ) -> int:
        """Write samples, in the order of their arrival, and events; how many samples were refused.

        Nothing of it is written when an error is raised. A file that turns out to be damaged is
        set aside, and a new one begun with all that is known of the open minutes.

        Raises:
            StoreError: when the disk takes nothing.

        """
        rows = tabulate(samples, self.identities.number_of)
        plan = self._open_minutes.plan(rows, now=time.monotonic())
        if len(rows):
            self._newest_minute = max(self._newest_minute, int(rows.minutes.max()))
        if plan.over is None and not plan.open and not events:
            return len(samples) - len(rows)
        if self._is_lost:
            self._begin_anew()
        try:
            self._commit(plan, events)
        except StoreDamaged as error:
            self._begin_anew(self._set_aside(error))
            self._commit(plan, events)
        if plan.over is not None:  # once a minute, as a rule
            self._is_lost = not self._is_in_place()
        return len(samples) - len(rows)

    def close(self) -> None:
        """Close the file; the open minutes wait in it for the next writer."""
        self.opened.connection.close()

    def _commit(self, plan: Plan, events: Sequence[HealthEvent | DeviceFault]) -> None:
        with immediate(self.opened.connection) as connection:
            self.identities.write(connection)
            plan.write(connection)
            connection.executemany(
                "INSERT INTO events (at, kind, device_id, body) VALUES (?, ?, ?, ?)",
                [
                    (event.at, EVENT_KINDS[type(event)], event.device_id, event.to_json())
                    for event in events
                ],
            )
            if plan.over is not None:
                now = self._clock()
                tidy(connection, self._limits, now=now, newest_minute=self._newest_minute)
        self.identities.accept()
        self._open_minutes.accept(plan)

    def _open_file(self) -> OpenFile:
        journal_bytes = self._limits.journal_bytes
        file = open_file(self._path, journal_bytes=journal_bytes, now=self._clock())
        self._inode = self._path.stat().st_ino
        return file

    def _load(self) -> OpenMinutes:
        forget_before = self._clock() - self._limits.rollup_seconds - _FORGOTTEN_AFTER_SECONDS
        with immediate(self.opened.connection) as connection:
            self.identities.load(connection, forget_before=forget_before)
            pending = read_pending(connection)
        self._newest_minute = max((minute for minute, _ in pending), default=0)
        self._is_lost = False
        return OpenMinutes(pending, now=time.monotonic())

    def _begin_anew(self, aside: Path | None = None) -> None:
        """Go on in the file that is at the path now, a new one as a rule."""
        self._is_lost = True
        self.opened.connection.close()
        self.opened = msgspec.structs.replace(self._open_file(), set_aside=aside)
        with immediate(self.opened.connection) as connection:
            connection.execute("DELETE FROM pending")
            self.identities.write(connection, all_anew=True)
            self._open_minutes.write_all(connection)
        self._is_lost = False

    def _set_aside(self, error: StoreDamaged) -> Path:
        self._is_lost = True
        self.opened.connection.close()
        aside = set_aside(self._path, now=self._clock())
        logger.warning("%s; it is %s now, and a new history is begun", error, aside)
        return aside

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one that has its name, and was not deleted."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False
