"""Reading the history, from any number of processes and while it is written."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

from exo.gpu.database import open_to_read, reading, used_bytes
from exo.gpu.telemetry.store.blocks import SAMPLES
from exo.gpu.telemetry.store.queries import (
    HOUR_MINUTES,
    find_device,
    oldest_period,
    read_devices,
    read_raw,
    read_rollups,
)
from exo.gpu.telemetry.store.rollups import resample, run_starts, summarize
from exo.gpu.telemetry.store.rows import join
from exo.gpu.telemetry.store.schema import VERSION, version_of
from exo.gpu.telemetry.store.series import HistoryStatistics, KeptEvent, KnownDevice, Series
from exo.gpu.vocabulary.errors import InvalidValue, StoreError, UnknownName
from exo.gpu.vocabulary.units import check_number, check_whole

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from exo.gpu.database import Connection

MINUTE_SECONDS = 60
_MOST_POINTS = 1_000_000
_LAST_SECOND = 253_402_300_799.0  # the end of the year 9999


class HistoryReader:
    """An open history; use it in a ``with`` block, from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the history at ``path``.

        Raises:
            StoreTooNew: when a later release wrote it.
            StoreDamaged: when it is broken; the next writer sets it aside.
            StoreError: when there is none, it is of another program, or it cannot be read.

        """
        if not path.exists():
            raise StoreError(f"there is no history at {path} yet")
        self.path = path
        self._connection = open_to_read(path)
        try:
            with reading(self._connection):
                version = version_of(self._connection, path)
            if version < VERSION:
                raise StoreError(
                    f"{path} has the tables of an older release (version {version}): "
                    "the next writer brings it up to date"
                )
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> HistoryReader:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def devices(self) -> tuple[KnownDevice, ...]:
        """The devices of which there is a history, the one seen last first."""
        with reading(self._connection) as connection:
            found = read_devices(connection).values()
        return tuple(sorted(found, key=lambda one: (-(one.last_seen or 0), one.device_id)))

    def find(self, device: str) -> KnownDevice:
        """A device by device id or hardware id; of several called so, the one seen last.

        Raises:
            NoSuchDevice: naming the devices that have a history.

        """
        with reading(self._connection) as connection:
            return find_device(connection, device)[1]

    def series(
        self,
        device: str,
        metric: str,
        *,
        since: float,
        until: float | None = None,
        points: int = 500,
    ) -> Series:
        """One reading of a device (by device id or hardware id) from ``since`` until ``until``.

        Both are Unix seconds, ``until`` is now by default. The span is cut into at most
        ``points`` points of equal length; one shorter than a minute is made of the samples as
        they came, where these reach back far enough, any other of the rollups of minutes.

        Raises:
            NoSuchDevice: naming the devices that have a history.
            UnknownName: for a reading that does not exist.
            InvalidValue: for an empty span or a number of points below 1.

        """
        until = time.time() if until is None else until
        _check_question(metric, since, until, points)
        place = SAMPLES.names.index(metric)
        step_seconds = (until - since) / points
        with reading(self._connection) as connection:
            number, known = find_device(connection, device)
            raw = step_seconds < MINUTE_SECONDS and _raw_reaches(connection, known, since)
            if raw:
                rolled = _from_samples(connection, number, place, (since, until), points)
            else:
                points = max(1, min(points, math.ceil((until - since) / MINUTE_SECONDS)))
                step_seconds = (until - since) / points
                rolled = _from_rollups(connection, number, place, (since, until), points)
        return Series(
            device=known,
            metric=metric,
            since=since,
            step_seconds=step_seconds,
            source="raw" if raw else "rollups",
            minimum=rolled[:, 0],
            mean=rolled[:, 1],
            maximum=rolled[:, 2],
            count=rolled[:, 3].astype("int64"),
        )

    def metrics(self, device: str, *, since: float, until: float | None = None) -> tuple[str, ...]:
        """The readings of a device of which there is any in a span of Unix seconds.

        Raises:
            NoSuchDevice: naming the devices that have a history.

        """
        until = time.time() if until is None else until
        everything = range(len(SAMPLES.names))
        with reading(self._connection) as connection:
            number, _ = find_device(connection, device)
            span = _minutes_of(since, until)
            _, rolled = read_rollups(connection, number, *span, list(everything))
        counts: list[float] = rolled[..., 3].sum(axis=0).tolist()
        return tuple(SAMPLES.names[place] for place in everything if counts[place])

    def events(
        self, *, since: float = 0.0, until: float | None = None, device: str | None = None
    ) -> tuple[KeptEvent, ...]:
        """The events in a span of Unix seconds, the oldest first; of one device id or of all."""
        query = (
            "SELECT kind, device_id, at, body FROM events WHERE at >= ?1 AND at < ?2 "
            "AND (?3 IS NULL OR device_id = ?3) ORDER BY at, id"
        )
        span = (since, _LAST_SECOND if until is None else until, device)
        with reading(self._connection) as connection:
            rows = connection.execute(query, span).fetchall()
        return tuple(
            KeptEvent(kind=kind, device_id=device_id, at=at, fields=json.loads(body))
            for kind, device_id, at, body in rows
        )

    @property
    def statistics(self) -> HistoryStatistics:
        """How much there is, and from when on."""
        with reading(self._connection) as connection:
            counts = [
                int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608
                for table in ("devices", "blocks", "events")
            ]
            raw = oldest_period(connection, "blocks")
            pending = connection.execute("SELECT min(minute) FROM pending").fetchone()[0]
            minute = oldest_period(connection, "minutes")
            hour = oldest_period(connection, "hours")
            size = used_bytes(connection)
        hour_minute = None if hour is None else hour * HOUR_MINUTES
        return HistoryStatistics(
            used_bytes=size,
            devices=counts[0],
            raw_minutes=counts[1],
            raw_since=_earliest(raw, pending),
            rollups_since=_earliest(minute, hour_minute),
            events=counts[2],
        )


def _check_question(metric: str, since: float, until: float, points: int) -> None:
    if metric not in SAMPLES.names:
        raise UnknownName("metric", metric, SAMPLES.names)
    check_number("since", since, low=0, high=_LAST_SECOND)
    check_number("until", until, low=0, high=_LAST_SECOND)
    check_whole("points", points, low=1)
    if until <= since or points > _MOST_POINTS:
        expected = f"a span that ends after it begins, in at most {_MOST_POINTS} points"
        raise InvalidValue("since", (since, until, points), expected)


def _earliest(*minutes: int | None) -> float | None:
    known = [minute for minute in minutes if minute is not None]
    return float(min(known) * MINUTE_SECONDS) if known else None


def _minutes_of(since: float, until: float) -> tuple[int, int]:
    """The first and the last minute that a span touches; its end is not in it."""
    return int(since // MINUTE_SECONDS), math.ceil(until / MINUTE_SECONDS) - 1


def _raw_reaches(connection: Connection, device: KnownDevice, since: float) -> bool:
    """Whether all that there ever was since a time is kept as it came."""
    oldest = oldest_period(connection, "blocks")
    if oldest is None:
        return oldest_period(connection, "minutes") is oldest_period(connection, "hours") is None
    return max(since, device.first_seen or 0.0) >= oldest * MINUTE_SECONDS


def _from_samples(
    connection: Connection, number: int, place: int, span: tuple[float, float], points: int
) -> NDArray[np.float64]:
    import numpy as np

    parts = read_raw(connection, number, *_minutes_of(*span))
    if not parts:
        return resample(np.empty(0, dtype=np.int64), np.empty((0, 4)), points)
    rows = join(parts)
    times, values = rows.milliseconds / 1000, rows.values[:, place]
    inside = (times >= span[0]) & (times < span[1]) & ~np.isnan(values)
    places = ((times[inside] - span[0]) * points / (span[1] - span[0])).astype(np.int64)
    places = np.minimum(places, points - 1)
    order = np.argsort(places, kind="stable")
    places, values = places[order], values[inside][order]
    if not len(places):
        return resample(places, np.empty((0, 4)), points)
    starts = run_starts(places)
    return resample(places[starts], summarize(values[:, None], starts)[:, 0], points)


def _from_rollups(
    connection: Connection, number: int, place: int, span: tuple[float, float], points: int
) -> NDArray[np.float64]:
    import numpy as np

    minutes, rolled = read_rollups(connection, number, *_minutes_of(*span), [place])
    known = rolled[:, 0, 3] > 0
    offsets = (minutes[known] * MINUTE_SECONDS - span[0]) * points / (span[1] - span[0])
    places = np.clip(offsets.astype(np.int64), 0, points - 1)
    return resample(places, rolled[known, 0], points)
