"""What a run shows: speeds, busy shares, makespan and balance, all from the tiles' records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Record:
    """One tile: which slot of which device worked on it when (Unix seconds), and how much."""

    tile: int
    device_id: str
    slot: int
    started_at: float
    ended_at: float
    iterations: int


@dataclass(frozen=True)
class Lane:
    """One slot of a device: how long it was busy, and the speed that it showed while it was."""

    device_id: str
    slot: int
    tiles: int
    iterations: int
    busy_seconds: float

    @property
    def speed(self) -> float:
        """Iterations per second while busy; 0 for a slot that got no work."""
        return self.iterations / self.busy_seconds if self.busy_seconds else 0.0


@dataclass(frozen=True)
class DeviceShare:
    """A device: the sum of its slots. ``busy_ratio`` is 1 when all were busy all the time."""

    device_id: str
    slots: int
    tiles: int
    iterations: int
    speed: float
    busy_ratio: float


@dataclass(frozen=True)
class Statistics:
    """One phase. ``balance`` is 1 when nobody waits, 2 when twice the time was needed."""

    makespan_seconds: float
    iterations: int
    tiles: int
    balance: float
    devices: tuple[DeviceShare, ...]


def lanes(records: Iterable[Record]) -> list[Lane]:
    """The slots that worked, by device and slot."""
    by_slot = attrgetter("device_id", "slot")
    grouped = groupby(sorted(records, key=by_slot), by_slot)
    return [_lane(device_id, slot, list(group)) for (device_id, slot), group in grouped]


def _lane(device_id: str, slot: int, records: Sequence[Record]) -> Lane:
    iterations = sum(record.iterations for record in records)
    busy = sum(record.ended_at - record.started_at for record in records)
    return Lane(device_id, slot, len(records), iterations, busy)


def statistics(records: Sequence[Record], slots: dict[str, int], started_at: float) -> Statistics:
    """The statistics of one phase that began at ``started_at`` (Unix seconds).

    ``slots`` names every device that took part, also one that got nothing to do, with the number
    of its slots. The makespan ends with the last tile.
    """
    makespan = max(record.ended_at for record in records) - started_at
    worked = lanes(records)
    shares = tuple(
        _share(device_id, count, [lane for lane in worked if lane.device_id == device_id], makespan)
        for device_id, count in slots.items()
    )
    total = sum(lane.iterations for lane in worked)
    balance = makespan * sum(lane.speed for lane in worked) / total
    return Statistics(makespan, total, len(records), balance, shares)


def _share(device_id: str, slots: int, worked: Sequence[Lane], makespan: float) -> DeviceShare:
    return DeviceShare(
        device_id=device_id,
        slots=slots,
        tiles=sum(lane.tiles for lane in worked),
        iterations=sum(lane.iterations for lane in worked),
        speed=sum(lane.speed for lane in worked),
        busy_ratio=sum(lane.busy_seconds for lane in worked) / (slots * makespan),
    )
