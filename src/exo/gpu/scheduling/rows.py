"""A device as a row of numbers, and the rules of the filters over such rows, without words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from exo.gpu.scheduling.constraints import names_of
from exo.gpu.scheduling.filters import SHARE_TOLERANCE, takes_slot
from exo.gpu.scheduling.standing import identity_of, place_of
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.health import Health
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import DeviceState

# What the filters say of a row: it will do; not now, but it holds its class; not now, and nobody
# knows when; never.
ELIGIBLE, TAKEN, UNWELL, NEVER = range(4)

Key = tuple[Any, ...]


class Row:
    """What a decision looks at of one device; what never changes is kept from row to row.

    ``free`` and ``most`` are bytes, ``idle`` a percentage, each -1 where it is not known, and
    ``celsius`` is then infinite: so that no limit lets the unknown pass. ``easy``
    is a sound device with every reading, without leases or limits: only its numbers count.
    ``received_at`` is the moment, on the caller's monotonic clock, at which the sample came.
    ``keys`` holds the place in the order of the device's class, by policy.
    """

    __slots__ = (
        "celsius",
        "display",
        "easy",
        "free",
        "free_bytes",
        "identity",
        "idle",
        "is_read",
        "keys",
        "kind",
        "lease_count",
        "max_share",
        "most",
        "names",
        "place",
        "rank",
        "received_at",
        "shares",
        "slot_leases",
        "slots",
        "state",
        "total_bytes",
        "unwell",
        "wholly_leased",
    )

    def __init__(
        self,
        state: DeviceState,
        figures: tuple[int | None, int | None, int | None],
        leases: tuple[Lease, ...],
        now: float,
        before: Row | None = None,
    ) -> None:
        self.state = state
        self.set_figures(figures)
        self._fix(state.device, state.settings, before)
        self.place = place_of(state)
        sample, age = state.sample, state.sample_age_seconds
        self.received_at = math.inf if sample is None or age is None else now - age
        self.is_read = sample is not None and not sample.sleeping
        busy = None if sample is None else sample.compute_utilization_percent
        self.idle = -1.0 if busy is None else 100 - busy
        celsius = None if sample is None else sample.temperature_celsius
        self.celsius = math.inf if celsius is None else celsius
        health = state.health
        self.unwell = health is Health.FAILED or health is Health.LOST or state.cordon is not None
        self.lease_count = len(leases)
        self.wholly_leased, self.slot_leases, self.shares = False, 0, 0.0
        if leases:
            self._count(leases)
        self.easy = (
            not leases
            and not self.unwell
            and self.max_share == 1
            and busy is not None
            and celsius is not None
        )
        self.keys: dict[str, Key] = {}

    def set_figures(self, figures: tuple[int | None, int | None, int | None]) -> None:
        """What the ledger says: free, total, and the most that one lease could get."""
        self.free_bytes, self.total_bytes, most = figures
        self.free = -1 if self.free_bytes is None else self.free_bytes
        self.most = -1 if most is None else most

    @property
    def share_held(self) -> float:
        """The part of the device that leases hold."""
        return self.share_held_of(self.slots)

    def share_held_of(self, slots: int) -> float:
        """The same, with another number of slots."""
        return self.shares + self.slot_leases * self.max_share / slots

    def _fix(self, device: GPUDevice, settings: DeviceSettings, before: Row | None) -> None:
        self.slots = settings.slots or device.slots
        self.max_share = settings.max_share
        self.kind = -1
        if before is not None and before.state.device is device:
            self.rank, self.names = before.rank, before.names
            self.identity, self.display = before.identity, before.display
            if before.state.settings is settings:
                self.kind = before.kind
        else:
            self.rank = device.device_class.rank
            self.names = frozenset(names_of(device))
            self.identity = identity_of(device)
            self.display = bool(device.drives_display)

    def _count(self, leases: Iterable[Lease]) -> None:
        parts: list[float] = []
        for lease in leases:
            if lease.exclusive:
                self.wholly_leased = True
            if lease.share is not None:
                parts.append(lease.share)
            elif takes_slot(lease):
                self.slot_leases += 1
        self.shares = math.fsum(parts)


def verdict(row: Row, request: Request, now: float, stale_after_seconds: float) -> int:
    """What :data:`~exo.gpu.scheduling.filters.FILTERS` say of a row, as one of four numbers.

    Rules about what a device is (class, runtime, labels and such) are asked once for all devices
    of a kind, and not here; nor are those about the machine beside it.
    """
    memory = request.memory_bytes
    idle, most = request.min_idle_percent, request.max_temperature_celsius
    if _is_hopeless(row, request, memory, idle, most):
        return NEVER
    if now - row.received_at > stale_after_seconds:
        return TAKEN
    if row.unwell:
        return UNWELL
    if (
        (memory is not None and row.free < memory)
        or (idle and row.idle < idle)
        or (most is not None and row.celsius > most)
        or (row.lease_count and _is_taken(row, request))
    ):
        return TAKEN
    return ELIGIBLE


def _is_hopeless(
    row: Row, request: Request, memory: int | None, idle: float | None, most: float | None
) -> bool:
    """Whether no wait makes the device do."""
    if memory is not None and row.most < memory:
        return True
    if request.without_devices and not row.names.isdisjoint(request.without_devices):
        return True
    if row.max_share < 1:
        part = 1.0 if request.exclusive else request.share
        if (part > row.max_share) if part is not None else (row.max_share <= 0 and memory is None):
            return True
    return row.is_read and (
        (bool(idle) and row.idle < 0) or (most is not None and row.celsius == math.inf)
    )


def _is_taken(row: Row, request: Request) -> bool:
    """Whether the leases on the device leave no room, memory apart."""
    if row.wholly_leased or request.exclusive:
        return True
    slots = request.slots or row.slots
    if request.share is not None:
        part = request.share
    elif request.memory_bytes is not None:
        return False
    elif row.slot_leases >= slots:
        return True
    else:
        part = row.max_share / slots
    return row.share_held_of(slots) + part > row.max_share + SHARE_TOLERANCE
