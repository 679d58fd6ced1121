"""Questions to an open history, each within the caller's transaction."""

from __future__ import annotations

import difflib
import logging
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.telemetry.store.blocks import unpack
from exo.gpu.telemetry.store.rollups import (
    HOURS,
    PARTS,
    merge_minutes,
    run_starts,
    summarize,
    unflatten,
    unpack_minute,
)
from exo.gpu.telemetry.store.rows import Rows, read_block, read_open
from exo.gpu.telemetry.store.schema import key_of, period_of
from exo.gpu.telemetry.store.series import KnownDevice
from exo.gpu.vocabulary.errors import NoSuchDevice, StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from exo.gpu.database import Connection

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]

logger = logging.getLogger("exo.gpu.telemetry.store")

HOUR_MINUTES = 60

# A device's rows of a range of periods, in the order of time; the parameters are the first key
# and the last one, and how far two periods are apart.
_ROWS = (
    "WITH RECURSIVE wanted (key) AS (SELECT ?1 WHERE ?1 <= ?2 "
    "UNION ALL SELECT key + ?3 FROM wanted WHERE key + ?3 <= ?2) "
    "SELECT {0}.key, data FROM wanted JOIN {0} ON {0}.key = wanted.key"
)


def read_devices(connection: Connection) -> dict[int, KnownDevice]:
    """The devices by number; samples of minutes that are not over count for when they were seen."""
    import numpy as np

    found = _kept_devices(connection)
    rows = read_open(connection)
    if rows is None:
        return found
    rows = rows.take(np.argsort(rows.devices, kind="stable"))
    starts = run_starts(rows.devices)
    ends = np.append(starts[1:], len(rows))
    for number, begin, end in zip(rows.devices[starts].tolist(), starts, ends, strict=True):
        if number in found:
            found[number] = _seen(found[number], rows.milliseconds[begin:end])
    return found


def _kept_devices(connection: Connection) -> dict[int, KnownDevice]:
    columns = "id, hardware_id, node, device_id, name, first_seen, last_seen"
    return {
        number: KnownDevice(
            hardware_id=hardware_id,
            node=node,
            device_id=device_id,
            name=name,
            first_seen=first,
            last_seen=last,
        )
        for number, hardware_id, node, device_id, name, first, last in connection.execute(
            f"SELECT {columns} FROM devices"  # noqa: S608 - our own names
        )
    }


def _seen(device: KnownDevice, milliseconds: Whole) -> KnownDevice:
    """The device, seen at these times too, which are sorted."""
    if not len(milliseconds):
        return device
    first, last = float(milliseconds[0]) / 1000, float(milliseconds[-1]) / 1000
    known_first, known_last = device.first_seen, device.last_seen
    return msgspec.structs.replace(
        device,
        first_seen=first if known_first is None else min(known_first, first),
        last_seen=last if known_last is None else max(known_last, last),
    )


def find_device(connection: Connection, name: str) -> tuple[int, KnownDevice]:
    """A device by device id or hardware id; of several called so, the one seen last.

    Raises:
        NoSuchDevice: naming the devices that have a history.

    """
    devices = _kept_devices(connection)
    for field in ("device_id", "hardware_id"):
        called = [pair for pair in devices.items() if getattr(pair[1], field) == name]
        seen: list[tuple[int, KnownDevice]] = []
        for number, known in called:
            rows = read_open(connection, number)
            seen.append((number, known if rows is None else _seen(known, rows.milliseconds)))
        if seen:
            return max(seen, key=lambda pair: (pair[1].last_seen or 0, pair[0]))
    names = sorted({device.device_id for device in devices.values()})
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise NoSuchDevice(f"{name!r} has no history; of these there is one: {', '.join(names)}{hint}")


def read_raw(
    connection: Connection, device: int, first_minute: int, last_minute: int
) -> list[Rows]:
    """The samples of a device in a range of minutes, both included, as far as they are kept.

    Those of minutes that are not over are among them, whatever the range.
    """
    found = [
        rows
        for key, data in _read_rows(connection, "blocks", device, first_minute, last_minute)
        if (rows := read_block(key, data)) is not None
    ]
    rows = read_open(connection, device)
    return found if rows is None else [*found, rows]


def read_rollups(
    connection: Connection,
    device: int,
    first_minute: int,
    last_minute: int,
    places: Sequence[int],
) -> tuple[Whole, Numbers]:
    """Rollups of some readings of a device in a range of minutes, both included, in their order.

    ``places`` are those of the readings in the layout of samples; minutes that are not over are
    rolled up as far as they are known.
    """
    import numpy as np

    columns = [place * len(PARTS) + part for place in places for part in range(len(PARTS))]
    minutes: list[Whole] = [np.empty(0, dtype=np.int64)]
    rolled: list[Numbers] = [np.empty((0, len(places), len(PARTS)))]
    hours = (first_minute // HOUR_MINUTES, last_minute // HOUR_MINUTES)
    for _, data in _read_rows(connection, "hours", device, *hours):
        try:
            milliseconds, rows = unpack(HOURS, data, columns)
        except StoreDamaged as error:
            logger.warning("the rollups of one hour are lost: %s", error)
            continue
        minutes.append(milliseconds // 60_000)
        rolled.append(unflatten(rows))
    unpacked = _read_rows(connection, "minutes", device, first_minute, last_minute)
    if unpacked:
        minutes.append(np.array([period_of(key) for key, _ in unpacked]))
        rolled.append(np.stack([unpack_minute(data)[places] for _, data in unpacked]))
    rows = read_open(connection, device)
    if rows is not None:
        starts = run_starts(rows.minutes)
        minutes.append(rows.minutes[starts])
        rolled.append(summarize(rows.values[:, places], starts))
    all_minutes, all_rolled = np.concatenate(minutes), np.concatenate(rolled)
    inside = (all_minutes >= first_minute) & (all_minutes <= last_minute)
    return merge_minutes(all_minutes[inside], all_rolled[inside])


def oldest_period(connection: Connection, table: str) -> int | None:
    """The oldest minute, or hour, that a table has a row of."""
    query = f"SELECT min(key) FROM {table}"  # noqa: S608 - our own names
    key = connection.execute(query).fetchone()[0]
    return None if key is None else period_of(key)


def _read_rows(
    connection: Connection, table: str, device: int, first: int, last: int
) -> list[tuple[int, bytes]]:
    """The rows of a device in a range of periods; looks only where the table has any."""
    bounds = f"SELECT min(key), max(key) FROM {table}"  # noqa: S608 - our own names
    low, high = connection.execute(bounds).fetchone()
    if low is None:
        return []
    first, last = max(first, period_of(low)), min(last, period_of(high))
    span = (key_of(first, device), key_of(last, device), key_of(1))
    return connection.execute(_ROWS.format(table), span).fetchall()
