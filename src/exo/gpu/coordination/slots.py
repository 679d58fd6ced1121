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
    )


def refusal(decision: Decision) -> NoDevice:
    """The exception that says "never" or "not now", with the decision."""
    kind = NeverAvailable if decision.never else NotNow
    return kind(refusal_message(decision), decision)


def acquire_slots(
    node: Node, request: Request, *, slots: int | None = None
) -> tuple[list[tuple[str, GPUDevice]], Decision]:
    """Lease as many slots as the request's rules and the devices' leases allow.

    Each device gives up to ``slots`` leases, by default as many as it has slots. Returns the
    (lease id, device) pairs, best device first, and the decision behind them.

    Raises:
        NeverAvailable: when no device here can ever satisfy the request.
        NotNow: when one could, but not at the moment.

    """
    check_whole("slots", slots, low=1, optional=True)
    request = msgspec.structs.replace(request, count=1, slots=slots)
    snapshot = node.snapshot()
    decision = select(snapshot, request, policies=policies_for(request))
    if not decision.chosen:
        raise refusal(decision)
    devices = {state.device.device_id: state.device for state in snapshot.devices}
    left_out = {refusal.device_id for refusal in decision.left_out}
    usable = [devices[score.device_id] for score in decision.ranking]
    acquired: list[tuple[str, GPUDevice]] = []
    last = decision
    try:
        for device in usable:
            if device.device_id not in left_out:
                last = _acquire_on(node, request, device, acquired) or last
    except BaseException:
        for lease_id, _ in acquired:
            node.release(lease_id)
        raise
    if not acquired:
        raise refusal(last)
    return acquired, decision


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
    for _ in range(request.slots or device.slots):
        grant = node.acquire(single)
        if not grant.lease_ids:
            return grant.decision
        acquired.append((grant.lease_ids[0], device))
    return None
