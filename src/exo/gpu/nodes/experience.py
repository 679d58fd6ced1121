"""What work really took on this user's devices, kept on disk: speed and memory by kind."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.database import immediate, open_history, open_to_read, reading
from exo.gpu.file_systems import NETWORK_FILE_SYSTEMS, file_system
from exo.gpu.scheduling.peak_memory import Peaks
from exo.gpu.scheduling.prediction_tracks import Lesson, Track
from exo.gpu.telemetry.probe_cache import cache_path
from exo.gpu.telemetry.store.file import set_aside
from exo.gpu.vocabulary.errors import StoreDamaged, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from exo.gpu.database import Connection
    from exo.gpu.vocabulary.forecast import MemoryAdvice

logger = logging.getLogger("exo.gpu.nodes.experience")

# The newest are kept: each a few hundred bytes, and more than a forecast compares.
MOST_LESSONS = 1000

_JOURNAL_BYTES = 2**20

# A later form of the rows gets tables of another name, so that either release leaves the other's.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS speeds_1 (kind TEXT NOT NULL, device TEXT NOT NULL,"
    " at REAL NOT NULL, track BLOB NOT NULL, PRIMARY KEY (kind, device))",
    "CREATE TABLE IF NOT EXISTS peaks_1 (kind TEXT PRIMARY KEY, at REAL NOT NULL,"
    " peaks BLOB NOT NULL)",
)

_TRACK = msgspec.msgpack.Decoder(Track)
_PEAKS = msgspec.msgpack.Decoder(Peaks)


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """Work of a kind that ended: ``items`` in so many ``seconds`` on a device, by hardware id.

    ``seconds`` is None where they say nothing of its speed, as of work that failed; ``peak_bytes``
    where nobody saw what it took of the device's memory.
    """

    kind: str
    hardware_id: str
    seconds: float | None = None
    items: int = 1
    peak_bytes: int | None = None


def experience_path(environ: Mapping[str, str]) -> Path:
    """The file, beside that of the probes."""
    return cache_path(environ).with_name("experience.sqlite")


class Experience:
    """One user's experience in one file, which several processes may use at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def learn(self, ended: Iterable[Ended], *, now: float | None = None) -> None:
        """Add what ended, oldest first. A file that cannot be used is told in the log, no more.

        ``now`` is Unix seconds, by default the present.
        """
        ended = [one for one in ended if one.kind]
        if not ended:
            return
        try:
            with contextlib.closing(self._open()) as connection, immediate(connection):
                _add(connection, ended, time.time() if now is None else now)
        except (StoreError, OSError) as error:
            logger.info("what was learned of this work is not kept: %s", error)

    def lessons(self) -> tuple[Lesson, ...]:
        """The speeds, the newest last; none where nothing is kept or the file cannot be read."""
        rows = self._rows("SELECT kind, device, track FROM speeds_1 ORDER BY at, kind, device")
        return tuple(
            Lesson(kind=kind, device=device, track=_TRACK.decode(track))
            for kind, device, track in rows
        )

    def advice(self, kind: str) -> MemoryAdvice | None:
        """What to ask for, from the peaks of a kind; None where none was seen."""
        rows = self._rows("SELECT peaks FROM peaks_1 WHERE kind = ?", kind)
        return _PEAKS.decode(rows[0][0]).advice if rows else None

    def _rows(self, question: str, *values: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        try:
            with contextlib.closing(open_to_read(self.path)) as connection, reading(connection):
                return connection.execute(question, values).fetchall()
        except StoreError as error:
            logger.warning("what was learned is not used: %s", error)
            return []

    def _open(self) -> Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        network = file_system(self.path.parent) in NETWORK_FILE_SYSTEMS
        try:
            connection = open_history(
                self.path, write_ahead=not network, journal_bytes=_JOURNAL_BYTES
            )
        except StoreDamaged as error:
            aside = set_aside(self.path, now=time.time())
            logger.warning("%s; it is %s now, and learning begins anew", error, aside)
            connection = open_history(
                self.path, write_ahead=not network, journal_bytes=_JOURNAL_BYTES
            )
        try:
            with immediate(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection


def _add(connection: Connection, ended: list[Ended], now: float) -> None:
    tracks: dict[tuple[str, str], Track] = {}
    peaks: dict[str, Peaks] = {}
    for one in ended:
        cell = one.kind, one.hardware_id
        if one.seconds is not None and one.items > 0:
            if cell not in tracks:
                tracks[cell] = _known_track(connection, cell)
            tracks[cell].take(one.seconds / one.items)
        if one.peak_bytes is not None:
            if one.kind not in peaks:
                peaks[one.kind] = _known_peaks(connection, one.kind)
            peaks[one.kind].take(one.peak_bytes)
    for (kind, device), track in tracks.items():
        if track.weight:
            row = kind, device, now, msgspec.msgpack.encode(track)
            connection.execute("INSERT OR REPLACE INTO speeds_1 VALUES (?, ?, ?, ?)", row)
    for kind, of_kind in peaks.items():
        row = kind, now, msgspec.msgpack.encode(of_kind)
        connection.execute("INSERT OR REPLACE INTO peaks_1 VALUES (?, ?, ?)", row)
    for table in ("speeds_1", "peaks_1"):
        connection.execute(
            f"DELETE FROM {table} WHERE rowid NOT IN"  # noqa: S608 - one of two names
            f" (SELECT rowid FROM {table} ORDER BY at DESC LIMIT {MOST_LESSONS})"
        )


def _known_track(connection: Connection, cell: tuple[str, str]) -> Track:
    row = connection.execute(
        "SELECT track FROM speeds_1 WHERE kind = ? AND device = ?", cell
    ).fetchone()
    return _TRACK.decode(row[0]) if row else Track(level=0.0)


def _known_peaks(connection: Connection, kind: str) -> Peaks:
    row = connection.execute("SELECT peaks FROM peaks_1 WHERE kind = ?", (kind,)).fetchone()
    return _PEAKS.decode(row[0]) if row else Peaks(kind=kind)
