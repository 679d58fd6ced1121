"""The only door to SQLite: files that several processes and users share."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.errors import StoreDamaged, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

Connection = sqlite3.Connection

# How long a transaction waits for another process's; decisions take well under a millisecond.
BUSY_SECONDS = 10.0

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def open_shared(path: Path, schema: str) -> Connection:
    """Open a database that all users of this machine may write, and make it if it is not there.

    The journal is kept and overwritten instead of deleted: in a sticky directory one user
    cannot delete another's file. An existing file is opened without the flag that creates,
    which Linux refuses for other people's files there (fs.protected_regular).

    Raises:
        StoreError: naming the file, when it is no database, is locked for too long or cannot
            be opened.

    """
    with _opening(path):
        mode = "rw" if path.exists() else "rwc"
        connection = _connect(path, mode)
        if mode == "rwc":
            path.chmod(0o666)
        # The store lives as long as a boot at most: it need not survive a power cut.
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA synchronous=OFF")
        connection.executescript(schema)
    return connection


def open_history(
    path: Path,
    *,
    write_ahead: bool,
    journal_bytes: int,
    look: Callable[[Connection], object] | None = None,
) -> Connection:
    """Open a database of one user for its only writer, and make it if it is not there.

    ``look`` may refuse it by raising, before anything in the file is changed.

    With ``write_ahead`` any number of processes may read while it is written, and its log is cut
    to ``journal_bytes`` after each checkpoint; that needs memory shared between them, which a
    network file system does not give. A process that dies costs nothing that was committed; a
    power cut may cost the last commits, and never the file. Space given up goes back to the file
    system by :func:`give_back`.

    Raises:
        StoreDamaged: for a file that is no database.
        StoreError: naming the file, for any other reason why it cannot be opened.

    """
    with _opening(path):
        connection = _connect(path, "rwc")
        try:
            if look is not None:
                look(connection)
            if not connection.execute("PRAGMA page_count").fetchone()[0]:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table
            connection.execute(f"PRAGMA journal_mode={'WAL' if write_ahead else 'DELETE'}")
            connection.execute(f"PRAGMA synchronous={'NORMAL' if write_ahead else 'FULL'}")
            connection.execute(f"PRAGMA journal_size_limit={journal_bytes}")
            page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
            pages = max(1, journal_bytes // page_bytes // 2)  # the other half for one transaction
            connection.execute(f"PRAGMA wal_autocheckpoint={pages}")
        except BaseException:
            connection.close()
            raise
    return connection


def open_to_read(path: Path) -> Connection:
    """Open a database that another process may be writing; nothing can be changed through it.

    Where the directory cannot be written and nobody is writing, the file is read as it stands.

    Raises:
        StoreDamaged: for a file that is no database.
        StoreError: naming the file, for any other reason why it cannot be read.

    """
    with _opening(path, "read"):
        connection = _connect(path, "ro")
        try:
            connection.execute("SELECT * FROM sqlite_schema LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            connection.close()
            log = path.with_name(f"{path.name}-wal")
            primary = error.sqlite_errorcode & 0xFF
            if primary not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) or log.exists():
                raise
            connection = _connect(path, "ro&immutable=1")
            connection.execute("SELECT * FROM sqlite_schema LIMIT 1").fetchall()
    return connection


@contextmanager
def immediate(connection: Connection) -> Generator[Connection]:
    """One transaction that holds the write lock from its first statement on.

    Raises:
        StoreDamaged: when the file turns out to be broken.
        StoreError: when the lock was not to be had, or the disk took no more.

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
        raise _refusal(f"{_name(connection)} gave no transaction", error) from error


@contextmanager
def reading(connection: Connection) -> Generator[Connection]:
    """Several reads of one state of the database.

    Raises:
        StoreDamaged: when the file turns out to be broken.
        StoreError: when it cannot be read.

    """
    try:
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise _refusal(f"{_name(connection)} cannot be read", error) from error


def check_whole_file(connection: Connection) -> None:
    """Read every page of the database.

    Raises:
        StoreDamaged: naming the first thing that is wrong.

    """
    name = _name(connection)
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise _refusal(f"{name} cannot be used", error) from error
    if found != "ok":
        raise StoreDamaged(f"{name} cannot be used: {' '.join(found.split())}")


def give_back(connection: Connection) -> None:
    """Return to the file system what deleted rows left empty; within a transaction or outside."""
    connection.execute("PRAGMA incremental_vacuum").fetchall()  # a page for each row fetched


def used_bytes(connection: Connection) -> int:
    """Bytes of the pages that hold something."""
    pages = [
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    ]
    return (pages[0] - pages[1]) * pages[2]


def _connect(path: Path, mode: str) -> Connection:
    name = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(
        f"file:{name}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def _opening(path: Path, verb: str = "used") -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _refusal(f"{path} cannot be {verb}", error) from error


def _refusal(what: str, error: Exception) -> StoreError:
    """Our error for one of SQLite's or the operating system's."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    kind = StoreDamaged if code & 0xFF in _DAMAGED else StoreError
    return kind(f"{what}: {error}")


def _name(connection: Connection) -> str:
    """The path of a database's file."""
    try:
        return str(connection.execute("PRAGMA database_list").fetchone()[2])
    except sqlite3.Error:
        return "a database that is closed or broken"
