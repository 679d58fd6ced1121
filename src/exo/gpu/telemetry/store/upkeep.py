"""What keeps a history small: hours packed together, what is too old or too much deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.database import give_back, used_bytes
from exo.gpu.telemetry.store.blocks import pack, unpack
from exo.gpu.telemetry.store.rollups import HOURS, flatten, merge_minutes, unflatten, unpack_minute
from exo.gpu.telemetry.store.schema import MOST_DEVICES, device_of, key_of, period_of
from exo.gpu.vocabulary.units import check_number, check_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from exo.gpu.database import Connection

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]

HOUR_MINUTES = 60

# Late samples find their minute unpacked for so long after the end of its hour.
_LATE_MINUTES = 5
# Devices whose hour is packed together, and minutes of one device that are packed in one
# transaction, so that readers and new samples wait little.
_DEVICES_AT_ONCE = 256
_PACKED_AT_ONCE = 20_000
# Minutes of raw samples deleted at once where the file is too large.
_SLICE_MINUTES = 10
# Below the bound after a deletion, so that not every minute begins with one.
_SLACK = 0.95
_MOST_EVENTS = 100_000
_LEAST_BYTES = 1 << 20


class HistoryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how much is kept; whatever comes first deletes the oldest.

    Raises:
        InvalidValue: for a negative time, or fewer bytes than 1 MiB.

    """

    raw_seconds: float = 86_400.0
    """Samples as they came."""
    rollup_seconds: float = 90 * 86_400.0
    """Minima, means and maxima of minutes; events too."""
    max_bytes: int = 1 << 30
    """Size of the file together with its write-ahead log."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_number("raw_seconds", self.raw_seconds, low=0)
        check_number("rollup_seconds", self.rollup_seconds, low=0)
        check_whole("max_bytes", self.max_bytes, low=_LEAST_BYTES)

    @property
    def journal_bytes(self) -> int:
        """The part of ``max_bytes`` that is left to the write-ahead log."""
        return min(8 << 20, self.max_bytes // 4)


def tidy(connection: Connection, limits: HistoryLimits, *, now: float, newest_minute: int) -> None:
    """Pack an hour that is over, and delete what is beyond the limits, in the caller's transaction.

    ``now`` is Unix seconds, ``newest_minute`` the latest minute of which samples are known.
    """
    packed = 0
    while packed < _PACKED_AT_ONCE:
        count = pack_hours(connection, before_minute=newest_minute - _LATE_MINUTES)
        if not count:
            break
        packed += count
    _expire(connection, limits, now)
    _shrink(connection, limits.max_bytes - limits.journal_bytes)
    give_back(connection)


def pack_hours(connection: Connection, *, before_minute: int) -> int:
    """Pack the rollups of the oldest hour that ended before a minute; of some of its devices.

    How many minutes were packed; 0 where there is no such hour.
    """
    oldest = _oldest(connection, "minutes")
    if oldest is None or oldest // HOUR_MINUTES >= before_minute // HOUR_MINUTES:
        return 0
    hour = oldest // HOUR_MINUTES
    start, end = hour * HOUR_MINUTES, (hour + 1) * HOUR_MINUTES
    query = "SELECT min(key & ?) FROM minutes WHERE key >= ? AND key < ?"
    first = connection.execute(query, (MOST_DEVICES - 1, key_of(start), key_of(end))).fetchone()[0]
    found: dict[int, list[tuple[int, bytes]]] = {}
    for minute in range(start, end):
        low = key_of(minute, first)
        span = (low, min(low + _DEVICES_AT_ONCE, key_of(minute + 1)))
        query = "SELECT key, data FROM minutes WHERE key >= ? AND key < ?"
        for key, data in connection.execute(query, span):
            found.setdefault(device_of(key), []).append((minute, data))
        connection.execute("DELETE FROM minutes WHERE key >= ? AND key < ?", span)
    for device, rows in found.items():
        _pack_hour(connection, key_of(hour, device), rows)
    return sum(map(len, found.values()))


def _pack_hour(connection: Connection, key: int, rows: list[tuple[int, bytes]]) -> None:
    """Write an hour of one device, together with what was packed of it before."""
    import numpy as np

    minutes = np.array([minute for minute, _ in rows], dtype=np.int64)
    rolled = np.stack([unpack_minute(data) for _, data in rows])
    before = connection.execute("SELECT data FROM hours WHERE key = ?", (key,)).fetchone()
    if before is not None:
        packed_minutes, packed = unpack_hour(before[0])
        minutes = np.concatenate((packed_minutes, minutes))
        rolled = np.concatenate((packed, rolled))
    minutes, rolled = merge_minutes(minutes, rolled)
    (block,) = pack(HOURS, minutes * 60_000, flatten(rolled), [0])
    connection.execute("INSERT OR REPLACE INTO hours VALUES (?, ?)", (key, block))


def unpack_hour(block: bytes) -> tuple[Whole, Numbers]:
    """The minutes in a packed hour and the rollups of each.

    Raises:
        StoreDamaged: for bytes that are no packed hour.

    """
    milliseconds, rows = unpack(HOURS, block)
    return milliseconds // 60_000, unflatten(rows)


def _expire(connection: Connection, limits: HistoryLimits, now: float) -> None:
    raw = int((now - limits.raw_seconds) // 60)
    rolled = int((now - limits.rollup_seconds) // 60)
    for table, before in (("blocks", raw), ("minutes", rolled), ("hours", rolled // HOUR_MINUTES)):
        _delete_before(connection, table, before)
    connection.execute("DELETE FROM events WHERE at < ?", (now - limits.rollup_seconds,))
    connection.execute(
        "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (_MOST_EVENTS,)
    )


def _shrink(connection: Connection, most_bytes: int) -> None:
    """Delete the oldest rows until the rest fits; of equal age, raw samples first."""
    if used_bytes(connection) <= most_bytes:
        return
    while used_bytes(connection) > most_bytes * _SLACK:
        ages = [
            (oldest * minutes, place, table, oldest)
            for place, (table, minutes) in enumerate(
                (("blocks", 1), ("minutes", 1), ("hours", HOUR_MINUTES))
            )
            if (oldest := _oldest(connection, table)) is not None
        ]
        if not ages:
            return
        _, _, table, oldest = min(ages)
        step = 1 if table == "hours" else _SLICE_MINUTES
        _delete_before(connection, table, oldest + step)


def _delete_before(connection: Connection, table: str, period: int) -> None:
    query = f"DELETE FROM {table} WHERE key < ?"  # noqa: S608 - our own names
    connection.execute(query, (key_of(period),))


def _oldest(connection: Connection, table: str) -> int | None:
    """The oldest period that a table has rows of."""
    query = f"SELECT min(key) FROM {table}"  # noqa: S608 - our own names
    key = connection.execute(query).fetchone()[0]
    return None if key is None else period_of(key)
