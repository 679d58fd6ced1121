"""The tables of the history on disk, how an older file becomes one of today, and their keys."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.database import immediate, reading
from exo.gpu.vocabulary.errors import StoreError, StoreTooNew

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.database import Connection

logger = logging.getLogger("exo.gpu.telemetry.store")

PATH_VARIABLE = "EXO_GPU_HISTORY"
"""Path of the file in which the history of readings is kept."""

# Says whose file it is (PRAGMA application_id): "exoG".
_APPLICATION = int.from_bytes(b"exoG", "big")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE devices (id INTEGER PRIMARY KEY, hardware_id TEXT NOT NULL, "
        "node TEXT NOT NULL, device_id TEXT NOT NULL, name TEXT NOT NULL, "
        "first_seen REAL, last_seen REAL, UNIQUE (hardware_id, node))",
        # Samples of minutes that are not over: what the last seconds brought, of many devices.
        "CREATE TABLE pending (sequence INTEGER PRIMARY KEY, minute INTEGER NOT NULL, "
        "first_device INTEGER NOT NULL, last_device INTEGER NOT NULL, data BLOB NOT NULL)",
        "CREATE TABLE blocks (key INTEGER PRIMARY KEY, data BLOB NOT NULL)",
        "CREATE TABLE minutes (key INTEGER PRIMARY KEY, data BLOB NOT NULL)",
        "CREATE TABLE hours (key INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    ),
    (
        "CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, "
        "device_id TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX events_by_time ON events (at)",
    ),
)
"""The steps from an empty file to the present version: each leads to the next higher one."""

VERSION = len(MIGRATIONS)

# A key is a minute (or an hour) since 1970 and a device, in this order: what is written together
# lies together, and what is oldest goes as one range.
DEVICE_BITS = 20
MOST_DEVICES = 1 << DEVICE_BITS


def key_of(period: int, device: int = 0) -> int:
    """The key of a device's row for a minute or an hour."""
    return (period << DEVICE_BITS) | device


def device_of(key: int) -> int:
    """The device in a key."""
    return key & (MOST_DEVICES - 1)


def period_of(key: int) -> int:
    """The minute or hour in a key."""
    return key >> DEVICE_BITS


def history_path(environ: Mapping[str, str]) -> Path:
    """The file: the one that ``EXO_GPU_HISTORY`` names, else one in the user's data folder."""
    named = environ.get(PATH_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "linux":  # as platformdirs has it, without the time to load it
        base = environ.get("XDG_DATA_HOME", "")
        folder = Path(base) if base.strip() else Path("~/.local/share").expanduser()
        return folder / "exo-gpu" / "history.sqlite"
    import platformdirs

    return platformdirs.user_data_path("exo-gpu", appauthor=False) / "history.sqlite"


def version_of(connection: Connection, path: os.PathLike[str]) -> int:
    """The version of a file's tables; 0 for an empty file.

    Raises:
        StoreTooNew: when a later release wrote it.
        StoreError: for the database of another program.

    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if tables and application != _APPLICATION:
        raise StoreError(f"{path} is the database of another program: name another file")
    if version > VERSION:
        raise StoreTooNew(
            f"{path} has version {version}, and this release knows versions up to {VERSION}: "
            "use the release that wrote it, or name another file"
        )
    return version


def migrate(connection: Connection, path: os.PathLike[str]) -> int:
    """Bring a file's tables to the present version, all steps or none; the version before.

    Raises:
        StoreTooNew: when a later release wrote it.
        StoreError: for the database of another program, or when it cannot be written.

    """
    with reading(connection):
        before = version_of(connection, path)
    if before == VERSION:
        return before
    with immediate(connection):
        before = version_of(connection, path)
        for step in MIGRATIONS[before:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={_APPLICATION}")
        connection.execute(f"PRAGMA user_version={VERSION}")
    if before:
        logger.info("%s is of version %d now, and was of %d", path, VERSION, before)
    return before
