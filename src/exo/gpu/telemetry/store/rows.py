"""Samples as rows of the history: of minutes that are open, and of minutes that are over.

What arrives goes to the table ``pending`` at once, a row for the samples of many devices. When a
minute is over, its samples become a block for each device, and its rollups, in one transaction.
"""

from __future__ import annotations

import functools
import logging
import operator
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.telemetry.store.blocks import SAMPLES, Layout, pack, unpack
from exo.gpu.telemetry.store.rollups import (
    combine,
    pack_minute,
    run_starts,
    summarize,
    unpack_minute,
)
from exo.gpu.telemetry.store.schema import DEVICE_BITS, device_of, key_of, period_of
from exo.gpu.vocabulary.errors import StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from exo.gpu.database import Connection
    from exo.gpu.vocabulary.metrics import GPUMetrics

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]

logger = logging.getLogger("exo.gpu.telemetry.store")

MINUTE_MILLISECONDS = 60_000

# What a calendar can say: from 1970 to the end of the year 9999.
_LAST_SECOND = 253_402_300_799.0

_PENDING = Layout((*SAMPLES.names, "device"), (*SAMPLES.steps, 1))
# One device's reader unpacks what may hold it only; more rows in one pack better.
_PENDING_ROWS = 4096
# A part of a machine with some dozens of devices; what is larger is not kept in memory.
_SMALL_BYTES = 8192

_row_of = operator.attrgetter("timestamp", *SAMPLES.names)


class Rows(msgspec.Struct, frozen=True):
    """Samples as columns: number of the device, time in milliseconds, readings."""

    devices: Whole
    milliseconds: Whole
    values: Numbers

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.devices)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """Some of them, in the order asked for."""
        return Rows(self.devices[which], self.milliseconds[which], self.values[which])

    @property
    def minutes(self) -> Whole:
        """The minute of each since 1970."""
        return self.milliseconds // MINUTE_MILLISECONDS


def join(parts: Sequence[Rows]) -> Rows:
    """All rows of ``parts``, of which there is at least one."""
    import numpy as np

    return Rows(
        np.concatenate([part.devices for part in parts]),
        np.concatenate([part.milliseconds for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def tabulate(samples: Sequence[GPUMetrics], number_of: Callable[[str], int]) -> Rows:
    """Samples as rows; left out are those of a time that no calendar has.

    ``number_of`` gives the number of a device id, or a negative one to leave its samples out.
    """
    import numpy as np

    try:
        cells = np.array([_row_of(sample) for sample in samples], dtype=np.float64)
    except OverflowError:
        cells = np.array([[_as_float(cell) for cell in _row_of(one)] for one in samples])
    cells = cells.reshape(len(samples), len(SAMPLES.names) + 1)
    numbers = {name: number_of(name) for name in {sample.device_id for sample in samples}}
    devices = np.array([numbers[sample.device_id] for sample in samples], dtype=np.int64)
    sound = (cells[:, 0] >= 0) & (cells[:, 0] <= _LAST_SECOND) & (devices >= 0)
    cells, devices = cells[sound], devices[sound]
    return Rows(devices, np.rint(cells[:, 0] * 1000).astype(np.int64), cells[:, 1:])


def write_pending(connection: Connection, minute: int, rows: Rows) -> None:
    """Keep samples of an open minute, within the caller's transaction."""
    import numpy as np

    rows = rows.take(np.lexsort((rows.milliseconds, rows.devices)))
    starts = list(range(0, len(rows), _PENDING_ROWS))
    values = np.column_stack((rows.values, rows.devices.astype(np.float64)))
    blocks = pack(_PENDING, rows.milliseconds, values, starts, level=1)
    connection.executemany(
        "INSERT INTO pending (minute, first_device, last_device, data) VALUES (?, ?, ?, ?)",
        [
            (
                minute,
                int(rows.devices[start]),
                int(rows.devices[min(start + _PENDING_ROWS, len(rows)) - 1]),
                block,
            )
            for start, block in zip(starts, blocks, strict=True)
        ],
    )


def read_pending(connection: Connection) -> list[tuple[int, Rows]]:
    """The samples of open minutes, each part with its minute, in the order of their arrival.

    Raises:
        StoreDamaged: for a row that cannot be read.

    """
    query = "SELECT minute, data FROM pending ORDER BY sequence"
    return [(minute, _unpack_pending(data)) for minute, data in connection.execute(query)]


def read_open(connection: Connection, device: int | None = None) -> Rows | None:
    """The samples of open minutes in the order of their times; of one device or of all.

    Raises:
        StoreDamaged: for a row that cannot be read.

    """
    import numpy as np

    query = "SELECT data FROM pending WHERE ?1 IS NULL OR ?1 BETWEEN first_device AND last_device"
    parts = [
        _unpack_small(data) if len(data) <= _SMALL_BYTES else _unpack_pending(data)
        for (data,) in connection.execute(query, (device,))
    ]
    if not parts:
        return None
    rows = join(parts)
    if device is not None:
        rows = rows.take(rows.devices == device)
    return rows.take(np.argsort(rows.milliseconds, kind="stable")) if len(rows) else None


def _unpack_pending(data: bytes) -> Rows:
    import numpy as np

    milliseconds, values = unpack(_PENDING, data)
    return Rows(values[:, -1].astype(np.int64), milliseconds, values[:, :-1])


# A reader asks for one reading after another, and the open minutes are in all of them.
_unpack_small = functools.lru_cache(maxsize=128)(_unpack_pending)


def write_minutes(connection: Connection, rows: Rows) -> None:
    """Write samples of minutes that are over as blocks and rollups, and drop them from pending.

    Where a minute has a block or a rollup already (a clock that was set back, a late sample), both
    are merged. Within the caller's transaction.

    Raises:
        StoreDamaged: for a block there that cannot be read.

    """
    import numpy as np

    keys = (rows.minutes << DEVICE_BITS) | rows.devices
    order = np.lexsort((rows.milliseconds, keys))
    rows, keys = rows.take(order), keys[order]
    starts = run_starts(keys)
    rolled = summarize(rows.values, starts)
    written: list[int] = keys[starts].tolist()
    minutes = sorted({period_of(key) for key in written})
    _write_rollups(connection, written, rolled, minutes)
    existing = _existing(connection, "blocks", written, minutes)
    earlier = [one for key, data in existing if (one := read_block(key, data))]
    if earlier:
        rows = join((rows, *earlier))
        keys = (rows.minutes << DEVICE_BITS) | rows.devices
        order = np.lexsort((rows.milliseconds, keys))
        rows, keys = rows.take(order), keys[order]
        starts = run_starts(keys)
    blocks = pack(SAMPLES, rows.milliseconds, rows.values, starts.tolist())
    connection.executemany(
        "INSERT OR REPLACE INTO blocks VALUES (?, ?)", zip(written, blocks, strict=True)
    )
    _write_seen(connection, rows)
    connection.executemany("DELETE FROM pending WHERE minute = ?", [(one,) for one in minutes])


def _write_rollups(
    connection: Connection, keys: list[int], rolled: Numbers, minutes: list[int]
) -> None:
    import numpy as np

    places = {key: place for place, key in enumerate(keys)}
    for key, data in _existing(connection, "minutes", keys, minutes):
        both = np.stack((unpack_minute(data), rolled[places[key]]))
        rolled[places[key]] = combine(both, [0])[0]
    connection.executemany(
        "INSERT OR REPLACE INTO minutes VALUES (?, ?)",
        zip(keys, map(pack_minute, rolled), strict=True),
    )


def _existing(
    connection: Connection, table: str, keys: Iterable[int], minutes: Iterable[int]
) -> list[tuple[int, bytes]]:
    """The rows of a table that have one of ``keys``, which are all of ``minutes``."""
    wanted = set(keys)
    query = f"SELECT key, data FROM {table} WHERE key >= ? AND key < ?"  # noqa: S608 - our own name
    return [
        (key, data)
        for minute in minutes
        for key, data in connection.execute(query, (key_of(minute), key_of(minute + 1)))
        if key in wanted
    ]


def read_block(key: int, data: bytes) -> Rows | None:
    """The samples of a row of ``blocks``; None for one that cannot be read, which the log tells."""
    import numpy as np

    try:
        milliseconds, values = unpack(SAMPLES, data)
    except StoreDamaged as error:
        logger.warning("the samples of one minute are lost: %s", error)
        return None
    return Rows(np.full(len(milliseconds), device_of(key)), milliseconds, values)


def _write_seen(connection: Connection, rows: Rows) -> None:
    """Widen the time in which each device was seen."""
    import numpy as np

    order = np.lexsort((rows.milliseconds, rows.devices))
    devices, milliseconds = rows.devices[order], rows.milliseconds[order]
    starts = run_starts(devices)
    firsts = milliseconds[starts] / 1000
    lasts = milliseconds[np.append(starts[1:], len(devices)) - 1] / 1000
    connection.executemany(
        "UPDATE devices SET first_seen = min(ifnull(first_seen, ?1), ?1), "
        "last_seen = max(ifnull(last_seen, ?2), ?2) WHERE id = ?3",
        zip(firsts.tolist(), lasts.tolist(), devices[starts].tolist(), strict=True),
    )


def _as_float(cell: float | None) -> float:
    """NaN for what is unknown, and for a whole number beyond all floats."""
    try:
        return float("nan") if cell is None else float(cell)
    except OverflowError:
        return float("nan")
