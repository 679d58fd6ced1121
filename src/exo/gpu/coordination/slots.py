"""From a request to leases: the devices that the rules allow, a lease for each slot of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.nodes.policies import policies_for
from exo.gpu.scheduling.selector import refusal_message, select
from exo.gpu.vocabulary.errors import NeverAvailable, NoDevice, NotNow
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.units import check_whole, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Decision
    from exo.gpu.vocabulary.device import GPUDevice


def request_of(
    *,
    memory: str | int | None = None,
    devices: str | Iterable[str] | None = None,
    runtime: str | None = None,
    all_devices: bool = False,
    exclusive: bool = False,
    holder: str = "",
    priority: int = 0,
) -> Request:
    """A request in the words that people use.

    Raises:
        InvalidValue: naming what cannot be.

    """
    if isinstance(devices, str):
        devices = (devices,)
    return Request(
        memory_bytes=None if memory is None else parse_size(memory, "memory"),
        devices=tuple(devices or ()),
        runtime=runtime,
        all_devices=all_devices,
        exclusive=exclusive,
        holder=holder,
        priority=priority,
    )


def refusal(decision: Decision) -> NoDevice:
    """The exception that says "never" or "not now", with the decision."""
    kind = NeverAvailable if decision.never else NotNow
    return kind(refusal_message(decision), decision)


def acquire_slots(
    node: Node,
    request: Request,
    *,
    slots: int | None = None,
    wait_seconds: float | None = None,
) -> tuple[list[tuple[str, GPUDevice]], Decision]:
    """Lease as many slots as the request's rules and the devices' leases allow.

    Each device gives up to ``slots`` leases, by default as many as it has slots. Returns the
    (lease id, device) pairs, best device first, and the decision behind them. Where none can be
    had now, the request stands in the line for ``wait_seconds``; once it has one, it takes what
    else is free then.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment, or not before the wait was over.

    """
    check_whole("slots", slots, low=1, optional=True)
    request = msgspec.structs.replace(request, count=1, slots=slots)
    acquired: list[tuple[str, GPUDevice]] = []
    try:
        decision, last = _acquire_everywhere(node, request, acquired)
        if not acquired and wait_seconds != 0 and not last.never:
            grant = node.acquire(request, wait_seconds=wait_seconds)
            last = grant.decision
            devices = {device.device_id: device for device in node.inventory().devices}
            for lease_id, device_id in zip(grant.lease_ids, last.chosen, strict=True):
                acquired.append((lease_id, devices[device_id]))
            if acquired:
                decision, _ = _acquire_everywhere(node, request, acquired)
    except BaseException:
        for lease_id, _ in acquired:
            node.release(lease_id)
        raise
    if not acquired:
        raise refusal(last)
    return acquired, decision


def _acquire_everywhere(
    node: Node, request: Request, acquired: list[tuple[str, GPUDevice]]
) -> tuple[Decision, Decision]:
    """Lease what is free on every device that may serve; the decision on all, and the last one."""
    snapshot = node.snapshot()
    decision = last = select(snapshot, request, policies=policies_for(request))
    if not decision.chosen:
        return decision, last
    devices = {state.device.device_id: state.device for state in snapshot.devices}
    left_out = {refusal.device_id for refusal in decision.left_out}
    for score in decision.ranking:
        device = devices[score.device_id]
        if score.device_id not in left_out and _goes_with(device, acquired, request):
            last = _acquire_on(node, request, device, acquired) or last
    return decision, last


def _goes_with(device: GPUDevice, acquired: list[tuple[str, GPUDevice]], request: Request) -> bool:
    """Whether a device is of the runtime of those that were acquired, or need not be."""
    free = not acquired or request.all_devices or request.devices
    return bool(free) or device.runtime == acquired[0][1].runtime


def _acquire_on(
    node: Node, request: Request, device: GPUDevice, acquired: list[tuple[str, GPUDevice]]
) -> Decision | None:
    """Lease the device's slots one by one; the decision that refused one, if any did."""
    single = msgspec.structs.replace(
        request,
        devices=(device.device_id,),
        runtime=None,
        device_class=None,
        all_devices=False,
        # What the rules about names said is decided; they know other names of the same device.
        without_devices=(),
        prefer=(),
    )
    held = sum(device.device_id == other.device_id for _, other in acquired)
    for _ in range((request.slots or device.slots) - held):
        grant = node.acquire(single)
        if not grant.lease_ids:
            return grant.decision
        acquired.append((grant.lease_ids[0], device))
    return None
