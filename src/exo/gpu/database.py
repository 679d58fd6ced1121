"""The only door to SQLite: files that several processes and users share."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

Connection = sqlite3.Connection

# How long a transaction waits for another process's; decisions take well under a millisecond.
BUSY_SECONDS = 10.0


def open_shared(path: Path, schema: str) -> Connection:
    """Open a database that all users of this machine may write, and make it if it is not there.

    The journal is kept and overwritten instead of deleted: in a sticky directory one user
    cannot delete another's file. An existing file is opened without the flag that creates,
    which Linux refuses for other people's files there (fs.protected_regular).

    Raises:
        StoreError: naming the file, when it is no database, is locked for too long or cannot
            be opened.

    """
    try:
        mode = "rw" if path.exists() else "rwc"
        connection = sqlite3.connect(
            f"file:{path}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        if mode == "rwc":
            path.chmod(0o666)
        # The store lives as long as a boot at most: it need not survive a power cut.
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA synchronous=OFF")
        connection.executescript(schema)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path} cannot be used: {error}") from error
    return connection


@contextmanager
def reading(connection: Connection) -> Generator[Connection]:
    """One transaction that only reads, and sees the file as it was at its first statement.

    Raises:
        StoreError: when the file is locked for too long, or is damaged.

    """
    try:
        connection.execute("BEGIN")
        yield connection
    except sqlite3.Error as error:
        raise StoreError(f"the store cannot be read: {error}") from error
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def immediate(connection: Connection) -> Generator[Connection]:
    """One transaction that holds the write lock from its first statement on.

    Raises:
        StoreError: when the lock was not to be had, or the file is damaged.

    """
    try:
        try:
            # Within the inner try: an interrupt may be raised right after the lock was taken.
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise StoreError(f"the store gave no transaction: {error}") from error
