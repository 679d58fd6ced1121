"""Which rows belong together: by node, vendor or label, and by the memory that they share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exo.gpu.telemetry.table.packed import Floats, Mask, Rows
from exo.gpu.telemetry.table.roster import Grouping, Roster
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.metrics import SERIES

_TOTAL = SERIES.index("memory_total_bytes")
_USED = SERIES.index("memory_used_bytes")


class Groups:
    """The groups of one version of a roster, for a table of ``row_count`` rows."""

    def __init__(self, roster: Roster, row_count: int) -> None:
        self.version = roster.version
        self.row_count = row_count
        self._roster = roster
        self._pools = _Pools(roster)
        self._found: dict[tuple[Grouping, str], tuple[list[str], Rows]] = {}

    def by(self, by: Grouping, label: str) -> tuple[list[str], Rows]:
        """The names of the groups, sorted, and the number of each row's; ``""`` for no group."""
        found = self._found.get((by, label))
        if found is None:
            found = self._found[by, label] = self._group(by, label)
        return found

    def _group(self, by: Grouping, label: str) -> tuple[list[str], Rows]:
        names = [""] * self.row_count
        for device_id, row in self._roster.rows.items():
            description = self._roster.descriptions.get(device_id)
            if description is not None and row < self.row_count:
                names[row] = description.group(by, label)
        distinct = sorted(set(names))
        numbers = {name: number for number, name in enumerate(distinct)}
        return distinct, np.array([numbers[name] for name in names], np.int64)

    def shadows(self, newest: Floats, counting: Mask) -> Rows:
        """The rows whose memory another row of their pool stands for.

        As where memory is counted for decisions: the host stands for its pool, else the largest
        member, then one that reports its use, then the last by id. Of those that count, that is.
        """
        return self._pools.shadows(newest, counting)


class _Pools:
    """The members of all pools that more than one described device shares."""

    def __init__(self, roster: Roster) -> None:
        pools: dict[tuple[str, str], list[str]] = {}
        for device_id in sorted(roster.rows.keys() & roster.descriptions.keys()):
            device = roster.descriptions[device_id].device
            pools.setdefault((device.node, device.memory_pool), []).append(device_id)
        shared = [members for members in pools.values() if len(members) > 1]
        devices = [roster.descriptions[one].device for members in shared for one in members]
        self._rows: Rows = np.array([roster.rows[one.device_id] for one in devices], np.int64)
        sizes = np.array([len(members) for members in shared], np.int64)
        self._pool: Rows = np.repeat(np.arange(len(shared)), sizes)
        self._host = np.array([one.device_class is DeviceClass.HOST for one in devices], np.bool_)
        self._stated = np.array([one.memory_bytes or 0 for one in devices], np.float64)
        self._seen: NDArray[np.float64] | None = None
        self._shadows: Rows = np.zeros(0, np.int64)

    def shadows(self, newest: Floats, counting: Mask) -> Rows:
        if not len(self._rows):
            return self._rows
        total = newest[_TOTAL, self._rows]
        total = np.where(np.isnan(total), self._stated, total)
        told = ~np.isnan(newest[_USED, self._rows])
        keys = (told, total, self._host, counting[self._rows], self._pool)
        seen = np.stack([key.astype(np.float64) for key in keys])
        # Sizes hardly ever change, and sorting takes longer than all the rest of an aggregate.
        if self._seen is None or not np.array_equal(seen, self._seen):
            order = np.lexsort(seen)  # stable: of equals the last by id stays last
            last = np.append(self._pool[order][1:] != self._pool[order][:-1], True)
            self._seen, self._shadows = seen, self._rows[order[~last]]
        return self._shadows
