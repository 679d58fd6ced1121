"""Memory that is on its way back: leases that have ended, until their devices show it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.ledger_book import SETTLE_SECONDS
from exo.gpu.scheduling.settling import is_settled
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from exo.gpu.backend import DeviceProcess
    from exo.gpu.execution.ledger_book import Book
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.snapshot import DeviceState

logger = logging.getLogger("exo.gpu.nodes.awaited_memory")


class Eyes(msgspec.Struct, frozen=True):
    """What the desk sees of its machine, by functions of whoever owns the devices."""

    devices: Callable[[], Sequence[GPUDevice]]
    """The devices that are seen here."""
    look: Callable[[float, frozenset[str] | None], None]
    """Reads every device whose sample is old, or was begun before that monotonic time; of those of
    the hardware ids alone, where any are named."""
    look_for_others: Callable[[], None]
    """Asks every driver who works on its devices; a snapshot then tells who has no lease."""
    assemble: Callable[[tuple[Lease, ...]], Snapshot]
    """All devices with what was read last, under these leases."""
    seen_since: Callable[[str], float | None]
    """The monotonic time at which the reading of a device's newest sample began."""
    driver_list: Callable[[str], list[DeviceProcess] | None]
    """The processes on the driver's list for a device; None where it gives none."""


class AwaitedMemory:
    """Sees to it that a lease counts until its memory is really back, and not much longer."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes

    def unread(self, book: Book) -> tuple[Lease, ...]:
        """Leases that have ended on devices that were read before that, and not since."""
        awaited = [lease for lease in book.leases if lease.settling]
        if not awaited:
            return ()
        here = {device.hardware_id: device.device_id for device in self._eyes.devices()}

        def is_unread(lease: Lease) -> bool:
            name = here.get(lease.hardware_id)
            seen = None if name is None else self._eyes.seen_since(name)
            return seen is not None and seen <= (lease.ended_seconds or 0.0)

        return tuple(filter(is_unread, awaited))

    def read(self, ended: tuple[Lease, ...]) -> None:
        """Read the devices of these leases anew; not within a transaction, it may take a while."""
        if ended:
            newest = max(lease.ended_seconds or 0.0 for lease in ended)
            self._eyes.look(newest, frozenset(lease.hardware_id for lease in ended))

    def settle(self, book: Book) -> None:
        """Strike out the ended leases whose memory is back, or has been awaited long enough."""
        awaited = [lease for lease in book.leases if lease.settling]
        if not awaited:
            return
        states = {
            state.device.hardware_id: state for state in self._eyes.assemble(book.leases).devices
        }
        for lease in awaited:
            state = states.get(lease.hardware_id)
            ended = lease.ended_seconds or 0.0
            if state is None:
                continue  # not visible here: others will see, or the clock decides
            if self._is_back(lease, state, ended):
                book.drop(lease.lease_id)
            elif book.now_seconds >= ended + SETTLE_SECONDS:
                _tell_of_lost_memory(lease, state)
                book.drop(lease.lease_id)

    def _is_back(self, lease: Lease, state: DeviceState, ended_seconds: float) -> bool:
        if state.sample is None or state.sample.memory_used_bytes is None:
            return True
        seen = self._eyes.seen_since(state.device.device_id)
        if seen is None or seen <= ended_seconds:
            return False
        listed = self._eyes.driver_list(state.device.device_id) if lease.seen_pids else None
        pids = None if listed is None else frozenset(process.pid for process in listed)
        return is_settled(lease, state, pids)


def _tell_of_lost_memory(lease: Lease, state: DeviceState) -> None:
    used = None if state.sample is None else state.sample.memory_used_bytes
    logger.warning(
        "%s: a lease of %s ended %g s ago, and the memory is not back: %s in use, which counts as "
        "somebody else's from now on",
        lease.device_id,
        lease.holder or lease.command or "a process that is gone",
        SETTLE_SECONDS,
        format_size(used),
    )
