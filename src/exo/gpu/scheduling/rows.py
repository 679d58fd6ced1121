"""A device as a row of numbers, and the rules of the filters over such rows, without words."""

from __future__ import annotations

import math
from collections.abc import Iterable

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

Key = tuple[object, ...]


class Row:
    """What a decision looks at of one device; what never changes is kept from row to row.

    ``received_at`` is the moment, on the caller's monotonic clock, at which the sample came.
    ``keys`` holds the place in the order of the device's class, by policy.
    """

    __slots__ = (
        "busy_percent",
        "celsius",
        "display",
        "free_bytes",
        "identity",
        "is_read",
        "keys",
        "kind",
        "lease_count",
        "max_share",
        "most_bytes",
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
        self.free_bytes, self.total_bytes, self.most_bytes = figures
        self._fix(state.device, state.settings, before)
        self.place = place_of(state)
        sample, age = state.sample, state.sample_age_seconds
        self.received_at = math.inf if sample is None or age is None else now - age
        self.is_read = sample is not None and not sample.sleeping
        self.busy_percent = None if sample is None else sample.compute_utilization_percent
        self.celsius = None if sample is None else sample.temperature_celsius
        health = state.health
        self.unwell = health is Health.FAILED or health is Health.LOST or state.cordon is not None
        self.lease_count = len(leases)
        self.wholly_leased, self.slot_leases, self.shares = False, 0, 0.0
        if leases:
            self._count(leases)
        self.keys: dict[str, Key] = {}

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


class Need:
    """A request as the row rules read it, and the moment at which it is asked."""

    __slots__ = (
        "exclusive",
        "idle_percent",
        "memory_bytes",
        "most_celsius",
        "now",
        "part",
        "ruled_out",
        "share",
        "slots",
        "stale_after_seconds",
        "takes_slot",
    )

    def __init__(self, request: Request, now: float, stale_after_seconds: float) -> None:
        self.memory_bytes = request.memory_bytes
        self.exclusive = request.exclusive
        self.share = request.share
        self.part = 1.0 if request.exclusive else request.share
        self.takes_slot = request.memory_bytes is None and request.share is None
        self.slots = request.slots
        self.idle_percent = request.min_idle_percent
        self.most_celsius = request.max_temperature_celsius
        self.ruled_out = request.without_devices
        self.now = now
        self.stale_after_seconds = stale_after_seconds


def verdict(row: Row, need: Need) -> int:
    """What :data:`~exo.gpu.scheduling.filters.FILTERS` say of a row, as one of four numbers.

    Rules about what a device is (class, runtime, labels and such) are asked once for all devices
    of a kind, and not here; nor are those about the machine beside it.
    """
    memory = need.memory_bytes
    if need.ruled_out and not row.names.isdisjoint(need.ruled_out):
        return NEVER
    part = need.part
    if (part > row.max_share) if part is not None else (row.max_share <= 0 and memory is None):
        return NEVER
    idle, most = need.idle_percent, need.most_celsius
    if row.is_read and (
        (idle and row.busy_percent is None) or (most is not None and row.celsius is None)
    ):
        return NEVER
    if memory is not None and (row.most_bytes is None or row.most_bytes < memory):
        return NEVER
    if need.now - row.received_at > need.stale_after_seconds:
        return TAKEN
    if row.unwell:
        return UNWELL
    if row.lease_count and _is_taken(row, need):
        return TAKEN
    if memory is not None and (row.free_bytes is None or row.free_bytes < memory):
        return TAKEN
    if idle and (row.busy_percent is None or 100 - row.busy_percent < idle):
        return TAKEN
    if most is not None and (row.celsius is None or row.celsius > most):
        return TAKEN
    return ELIGIBLE


def _is_taken(row: Row, need: Need) -> bool:
    """Whether the leases on the device leave no room, memory apart."""
    if row.wholly_leased or need.exclusive:
        return True
    slots = need.slots or row.slots
    if need.takes_slot:
        if row.slot_leases >= slots:
            return True
        part = row.max_share / slots
    elif need.share is not None:
        part = need.share
    else:
        return False
    return row.share_held_of(slots) + part > row.max_share + SHARE_TOLERANCE
