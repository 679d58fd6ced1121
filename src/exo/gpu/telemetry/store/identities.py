"""Which device a device id belongs to: a number on disk for each hardware id and node."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.telemetry.store.schema import MOST_DEVICES

if TYPE_CHECKING:
    from exo.gpu.database import Connection
    from exo.gpu.vocabulary.device import GPUDevice


class _Identity(msgspec.Struct, frozen=True):
    hardware_id: str
    node: str
    device_id: str
    name: str


class Identities:
    """The devices of a history; :meth:`register` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_label: dict[str, _Identity] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._saved: dict[int, _Identity] = {}
        self._wanted: dict[int, _Identity] = {}
        self._next = 0

    def load(self, connection: Connection, *, forget_before: float) -> None:
        """Take the numbers in a file; forget devices last seen before a time in Unix seconds."""
        connection.execute("DELETE FROM devices WHERE last_seen < ?", (forget_before,))
        columns = "id, hardware_id, node, device_id, name"
        for number, *words in connection.execute(f"SELECT {columns} FROM devices"):  # noqa: S608
            identity = _Identity(*words)
            self._numbers[identity.hardware_id, identity.node] = number
            self._saved[number] = self._wanted[number] = identity
            self._next = max(self._next, number + 1)

    def register(self, device: GPUDevice) -> None:
        """Remember which hardware a device id stands for from now on."""
        identity = _Identity(device.hardware_id, device.node, device.device_id, device.name)
        with self._lock:
            self._by_label[device.device_id] = identity

    def number_of(self, device_id: str) -> int:
        """The number of a device, a new one where it has none; -1 where all are taken."""
        with self._lock:
            identity = self._by_label.get(device_id)
        if identity is None:
            identity = _Identity(device_id, "", device_id, "")
        number = self._numbers.get((identity.hardware_id, identity.node))
        if number is None:
            if self._next >= MOST_DEVICES:
                return -1
            number, self._next = self._next, self._next + 1
            self._numbers[identity.hardware_id, identity.node] = number
        self._wanted[number] = identity
        return number

    def write(self, connection: Connection, *, all_anew: bool = False) -> None:
        """Write what is new or is called otherwise, within the caller's transaction."""
        connection.executemany(
            "INSERT INTO devices (id, hardware_id, node, device_id, name) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET device_id = excluded.device_id, name = excluded.name",
            [
                (number, *msgspec.structs.astuple(identity))
                for number, identity in self._wanted.items()
                if all_anew or self._saved.get(number) != identity
            ],
        )

    def accept(self) -> None:
        """Take it that what was written is on disk."""
        self._saved = dict(self._wanted)
