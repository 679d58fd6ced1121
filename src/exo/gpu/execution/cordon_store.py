"""Devices kept out of scheduling: one file for all users of the machine; it outlives processes."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from exo.gpu.database import immediate, open_shared, reading
from exo.gpu.execution.state_directory import StorePlace, boot_id, prepare
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.health import Cordon

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from exo.gpu.database import Connection

FOLDER, FILE_NAME = "cordons", "cordons.sqlite"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS cordons "
    "(hardware_id TEXT PRIMARY KEY, boot TEXT NOT NULL, record TEXT NOT NULL)"
)
_REMOVE = "removing the file lifts all cordons"


class CordonStore:
    """The cordons of one machine, at most one a device; shared by all its users.

    The file is opened for each call, so that one who removes it starts anew for everybody. A
    cordon whose time is up is none, nor is one by health from before this boot, which has reset
    the device. Like leases they are cooperative: they bind those who ask.
    """

    def __init__(
        self,
        place: StorePlace,
        *,
        clock: Callable[[], float] = time.time,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        """Nothing is opened or made yet; ``clock`` gives Unix seconds."""
        self._place = place
        self._clock = clock
        self._boot = boot

    @property
    def path(self) -> Path:
        """The file, which the first cordon makes."""
        return self._place.path / FOLDER / FILE_NAME

    def live(self) -> tuple[Cordon, ...]:
        """The cordons that hold now, by hardware id; where nobody ever set one, nothing is made.

        Raises:
            StoreError: naming the file, when it cannot be read.

        """
        try:
            if not self.path.exists():
                return ()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from error
        with self._open() as connection, reading(connection):
            return self._live(connection)

    def put(self, cordon: Cordon) -> Cordon:
        """Cordon a device, in place of a cordon that it had; the one that holds from now on.

        A cordon by health never takes the place of a person's, which then goes on to hold.

        Raises:
            StoreError: naming the file, when it cannot be written.

        """
        prepare(self._place, FOLDER, _furnish)
        with self._open() as connection, immediate(connection):
            found = self._found(connection, cordon.hardware_id)
            if found is not None and cordon.by_health and not found.by_health:
                return found
            self._sweep(connection)
            connection.execute(
                "INSERT OR REPLACE INTO cordons VALUES (?, ?, ?)",
                (cordon.hardware_id, self._boot(), cordon.to_json()),
            )
        return cordon

    def lift(self, hardware_id: str, *, by_health_only: bool = False) -> Cordon | None:
        """End a device's cordon, or only one that its health set; the one that was ended, or None.

        Raises:
            StoreError: naming the file, when it cannot be written.

        """
        if not self.live():
            return None
        with self._open() as connection, immediate(connection):
            found = self._found(connection, hardware_id)
            if found is None or (by_health_only and not found.by_health):
                return None
            connection.execute("DELETE FROM cordons WHERE hardware_id = ?", (hardware_id,))
            self._sweep(connection)
        return found

    def _found(self, connection: Connection, hardware_id: str) -> Cordon | None:
        live = self._live(connection)
        return next((one for one in live if one.hardware_id == hardware_id), None)

    def _live(self, connection: Connection) -> tuple[Cordon, ...]:
        now, boot = self._clock(), self._boot()
        rows = connection.execute("SELECT boot, record FROM cordons ORDER BY hardware_id")
        try:
            cordons = [(Cordon.from_json(record), set_in) for set_in, record in rows.fetchall()]
        except ValueError as error:
            raise StoreError(f"{self.path} holds what is no cordon: {error}") from error
        return tuple(
            cordon
            for cordon, set_in in cordons
            if (cordon.until is None or now < cordon.until)
            and (set_in == boot or not cordon.by_health)
        )

    def _sweep(self, connection: Connection) -> None:
        """Drop those that hold no more."""
        kept = {cordon.hardware_id for cordon in self._live(connection)}
        for (hardware_id,) in connection.execute("SELECT hardware_id FROM cordons").fetchall():
            if hardware_id not in kept:
                connection.execute("DELETE FROM cordons WHERE hardware_id = ?", (hardware_id,))

    @contextmanager
    def _open(self) -> Generator[Connection]:
        """The file for one call; whatever is wrong with it is said with its name."""
        try:
            with closing(open_shared(self.path, SCHEMA)) as connection:
                yield connection
        except StoreError as error:
            text = str(error)
            where = "" if str(self.path) in text else f"{self.path}: "
            raise StoreError(f"cordons cannot be used: {where}{text}; {_REMOVE}") from error


def _furnish(folder: Path) -> None:
    open_shared(folder / FILE_NAME, SCHEMA).close()
