"""Opening the file of a history for its writer: checked, brought up to date, or set aside."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.database import Connection, check_whole_file, open_history, reading
from exo.gpu.file_systems import NETWORK_FILE_SYSTEMS, file_system
from exo.gpu.telemetry.store.schema import VERSION, migrate, version_of
from exo.gpu.vocabulary.errors import StoreDamaged, StoreError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("exo.gpu.telemetry.store")

# Damaged files that are kept for whoever wants to look; older ones are deleted.
KEPT_DAMAGED = 3


class OpenFile(msgspec.Struct, frozen=True):
    """An open history, and what was found when it was opened."""

    connection: Connection
    set_aside: Path | None = None
    """Where the file that was there before went, when it was damaged."""
    migrated_from: int | None = None
    """The version of the tables before, when they were of an older release."""
    network: str | None = None
    """The network file system that it lies on; locks are weaker there, and writing is slower."""


def open_file(path: Path, *, journal_bytes: int, now: float) -> OpenFile:
    """Open a history for writing, and make it if it is not there.

    All of it is read once, so that damage is found before anything is added (two or three seconds
    for each GiB). A damaged file is set aside, which the log tells too. ``now`` is Unix seconds.

    Raises:
        StoreTooNew: when a later release wrote it.
        StoreError: naming the file, when it cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
    kind = file_system(path.parent)
    network = kind if kind in NETWORK_FILE_SYSTEMS else None
    if network:
        logger.warning(
            "%s is on %s, a network file system: write it from one machine only", path, network
        )
    aside: Path | None = None
    try:
        connection, before = _open(path, network=bool(network), journal_bytes=journal_bytes)
    except StoreDamaged as error:
        aside = set_aside(path, now=now)
        logger.warning("%s; it is %s now, and a new history is begun", error, aside)
        connection, before = _open(path, network=bool(network), journal_bytes=journal_bytes)
    return OpenFile(connection, aside, before, network)


def set_aside(path: Path, *, now: float) -> Path:
    """Rename a damaged file, its log too, to one with the time in its name; the new path.

    Raises:
        StoreError: when it cannot be renamed.

    """
    stamp = datetime.fromtimestamp(now, tz=UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    try:
        # The log goes first: it must never be taken for one of the new file.
        for ending in ("-wal", "-journal", ""):
            part = path.with_name(f"{path.name}{ending}")
            if part.exists():
                part.replace(target.with_name(f"{target.name}{ending}"))
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        _forget_oldest(path)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be set aside: {error}") from error
    return target


def _forget_oldest(path: Path) -> None:
    found = [
        one
        for one in path.parent.glob(f"{path.name}.damaged-*")
        if not one.name.endswith(("-wal", "-journal"))
    ]
    found.sort(key=lambda one: (one.stat().st_mtime, one.name))
    for old in found[:-KEPT_DAMAGED]:
        for ending in ("", "-wal", "-journal"):
            old.with_name(f"{old.name}{ending}").unlink(missing_ok=True)


def _open(path: Path, *, network: bool, journal_bytes: int) -> tuple[Connection, int | None]:
    def look(connection: Connection) -> None:
        check_whole_file(connection)
        with reading(connection):
            version_of(connection, path)

    connection = open_history(path, write_ahead=not network, journal_bytes=journal_bytes, look=look)
    try:
        before = migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection, before if 0 < before < VERSION else None
