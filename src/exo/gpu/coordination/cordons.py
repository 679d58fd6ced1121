"""Keeping devices out of scheduling: by a person, by draining, by health; and taking them back."""

from __future__ import annotations

import getpass
import os
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.coordination.slots import refusal
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.filters import names_of
from exo.gpu.scheduling.selector import select
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.health import BY_HEALTH, Cordon, FaultAction, Health
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.units import check_number, check_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.nodes.transport import CordonKeeper
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import HealthVerdict
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# As long as a sentence; it has to fit into a list.
LONGEST_WHY = 300

# What health cordons off, somebody should look at within a day; longer, nobody does.
BY_HEALTH_SECONDS = 86_400.0

# How often leases are looked at while a device drains.
LOOK_SECONDS = 0.5

_NEEDS_RESET = (FaultAction.RESET_DEVICE, FaultAction.RESTART_MACHINE)


class Drained(msgspec.Struct, frozen=True):
    """How a drain ended; ``cordon`` is None where somebody lifted it meanwhile."""

    cordon: Cordon | None
    leases: tuple[Lease, ...] = ()
    """Those that had not ended by then."""


def cordon(
    name: str, *, why: str, for_seconds: float | None = None, node: LocalNode | None = None
) -> Cordon:
    """Keep a device out of scheduling, for so long or until :func:`uncordon`.

    ``name`` is its id, alias or hardware id. What runs there goes on; nothing new begins.

    Raises:
        NeverAvailable: for a name that no device here has.
        InvalidValue: for a reason or a time that cannot be.
        StoreError: when it cannot be kept.

    """
    if node is None:
        with LocalNode() as opened:
            return cordon(name, why=why, for_seconds=for_seconds, node=opened)
    state = _state_of(node.snapshot(), name)
    return node.put_cordon(_by_person(state.device, why, for_seconds))


def uncordon(name: str, *, node: LocalNode | None = None) -> Cordon | None:
    """Take a device back into scheduling; the cordon that ended, None where it had none.

    Also a device that is not here any more, by the names that its cordon bears.

    Raises:
        NeverAvailable: for a name that no device here and no cordon has.
        StoreError: when cordons cannot be read or written.

    """
    if node is None:
        with LocalNode() as opened:
            return uncordon(name, node=opened)
    for one in node.cordons():
        if name in {one.hardware_id, one.device_id} and not _is_here(node, name):
            return node.lift_cordon(one.hardware_id)
    return node.lift_cordon(_state_of(node.snapshot(), name).device.hardware_id)


def drain(
    name: str,
    *,
    why: str = "draining",
    for_seconds: float | None = None,
    wait_seconds: float | None = None,
    node: LocalNode | None = None,
    on_wait: Callable[[tuple[Lease, ...]], None] | None = None,
) -> Drained:
    """Cordon a device at once, and wait until the last lease on it has ended.

    ``wait_seconds`` bounds the waiting: 0 only cordons, None waits as long as it takes.
    ``on_wait`` hears which leases are waited for, at first and whenever these change. A lease
    under which this very process works is not waited for.

    Raises:
        NeverAvailable: for a name that no device here has.
        InvalidValue: for a reason or a time that cannot be.
        StoreError: when it cannot be kept.

    """
    if node is None:
        with LocalNode() as opened:
            return drain(
                name,
                why=why,
                for_seconds=for_seconds,
                wait_seconds=wait_seconds,
                node=opened,
                on_wait=on_wait,
            )
    check_number("wait", wait_seconds, low=0, optional=True)
    device = _state_of(node.snapshot(), name).device
    draining = msgspec.structs.replace(_by_person(device, why, for_seconds), draining=True)
    node.put_cordon(draining)
    stays, leases = _wait_for_leases(node, device, wait_seconds, on_wait)
    if not stays:
        return Drained(None, leases)
    if leases:
        return Drained(draining, leases)
    return Drained(node.put_cordon(msgspec.structs.replace(draining, draining=False)))


def cordon_by_health(
    device: GPUDevice,
    verdict: HealthVerdict,
    *,
    node: CordonKeeper,
    for_seconds: float = BY_HEALTH_SECONDS,
) -> Cordon | None:
    """Cordon a device that failed by a fault which needs a reset; None for any other verdict.

    The cause is the verdict's; it ends with the time, with the next boot, or when a probe of the
    device passes. A cordon that a person set stays, and is given back.

    Raises:
        StoreError: when it cannot be kept.

    """
    faults = [fault for fault in verdict.faults if fault.action in _NEEDS_RESET]
    if verdict.health is not Health.FAILED or not faults:
        return None
    return node.put_cordon(
        Cordon(
            hardware_id=device.hardware_id,
            device_id=device.device_id,
            why="; ".join(verdict.reasons),
            by=BY_HEALTH,
            since=time.time(),
            until=time.time() + for_seconds,
        )
    )


def _by_person(device: GPUDevice, why: str, for_seconds: float | None) -> Cordon:
    check_text("why", why)
    why = " ".join(why.split())
    if len(why) > LONGEST_WHY or not why.isprintable():
        raise InvalidValue("why", why, f"a printable line of at most {LONGEST_WHY} characters")
    check_number("for", for_seconds, low=1, optional=True)
    now = time.time()
    return Cordon(
        hardware_id=device.hardware_id,
        device_id=device.device_id,
        why=why,
        by=_user(),
        since=now,
        until=None if for_seconds is None else now + for_seconds,
    )


def _user() -> str:
    """The name of who runs this program, never that by which health signs."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"user {name}" if name == BY_HEALTH else name


def _is_here(node: LocalNode, name: str) -> bool:
    return any(name in names_of(device) for device in node.inventory().devices)


def _state_of(snapshot: Snapshot, name: str) -> DeviceState:
    for state in snapshot.devices:
        if name in names_of(state.device):
            return state
    raise refusal(select(snapshot, Request(devices=(name,))))


def _wait_for_leases(
    node: LocalNode,
    device: GPUDevice,
    wait_seconds: float | None,
    on_wait: Callable[[tuple[Lease, ...]], None] | None,
) -> tuple[bool, tuple[Lease, ...]]:
    """Whether the cordon still stands, and the leases that have not ended when the time is up."""
    ends = None if wait_seconds is None else time.monotonic() + wait_seconds
    never = threading.Event()
    told: tuple[Lease, ...] = ()
    while True:
        snapshot = node.snapshot()
        state = _state_of(snapshot, device.hardware_id)
        own = snapshot.umbrella
        leases = tuple(lease for lease in state.leases if lease.lease_id not in own)
        left = LOOK_SECONDS if ends is None else ends - time.monotonic()
        if not leases or left <= 0 or state.cordon is None:
            return state.cordon is not None, leases
        if leases != told:
            told = leases
            if on_wait is not None:
                on_wait(leases)
        never.wait(min(LOOK_SECONDS, left))
