"""Who is in the table: device ids, their rows, and what is known of them for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from exo.gpu.vocabulary.device import GPUDevice

Grouping = Literal["node", "vendor", "label"]

# Two dict entries, a list's slot and a short text, measured with sys.getsizeof.
_DEVICE_BYTES = 300


class Description(NamedTuple):
    """Static facts of a device, and what people call it."""

    device: GPUDevice
    labels: Mapping[str, str]

    def group(self, by: Grouping, label: str) -> str:
        """The group it belongs to; empty where nothing says."""
        if by == "label":
            return self.labels.get(label, "")
        return self.device.node if by == "node" else self.device.vendor


class Roster:
    """Ids by row and rows by id; a row that was given up is the next to be taken.

    ``version`` rises whenever a row changes hands or a description changes.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.names: list[str | None] = []
        self.descriptions: dict[str, Description] = {}
        self.version = 0
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def memory_bytes(self) -> int:
        """An estimate of what ids and facts take."""
        return _DEVICE_BYTES * (len(self.names) + len(self.descriptions))

    def place(self, device_id: str) -> int:
        """A row for a device that has none."""
        self.version += 1
        if self._free:
            row = self._free.pop()
            self.names[row] = device_id
        else:
            row = len(self.names)
            self.names.append(device_id)
        self.rows[device_id] = row
        return row

    def release(self, rows: Iterable[int]) -> None:
        """Give these rows up."""
        self.version += 1
        for row in rows:
            name = self.names[row]
            assert name is not None
            self.names[row] = None
            del self.rows[name]
            self._free.append(row)

    def describe(self, description: Description) -> None:
        """Keep the facts of a device, whether it has a row or not."""
        self.version += 1
        self.descriptions[description.device.device_id] = description

    def undescribe(self, device_id: str) -> None:
        """Forget the facts of a device, if there are any."""
        if self.descriptions.pop(device_id, None) is not None:
            self.version += 1
