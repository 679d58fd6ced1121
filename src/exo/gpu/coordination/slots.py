"""From a request to leases: the devices that the rules allow, a lease for each slot of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.nodes.policies import policies_for
from exo.gpu.scheduling.selector import refusal_message, select
from exo.gpu.vocabulary.errors import NeverAvailable, NoDevice, NotNow
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Decision, Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.request import Request

logger = logging.getLogger(__name__)


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


def acquire_for_all(
    node: Node,
    requests: Sequence[Request],
    *,
    slots: int | None = None,
    wait_seconds: float | None = None,
) -> tuple[list[tuple[str, GPUDevice]], tuple[Refusal, ...]]:
    """Slots for each of several requests that can have some now, and what was left out.

    Where none can, the first that could later is waited for, and the others are asked again then.

    Raises:
        NeverAvailable: when no device here can ever satisfy any of them.
        NotNow: when one could, but not at the moment, or not before the wait was over.

    """
    if len(requests) == 1:
        acquired, decision = acquire_slots(
            node, requests[0], slots=slots, wait_seconds=wait_seconds
        )
        return acquired, decision.left_out
    acquired, refusals = _acquire_each(node, requests, slots)
    if acquired:
        return acquired, ()
    possible = [place for place, refused in refusals.items() if isinstance(refused, NotNow)]
    if not possible or wait_seconds == 0:
        raise refusals[possible[0] if possible else 0]
    first = possible[0]
    acquired, _ = acquire_slots(node, requests[first], slots=slots, wait_seconds=wait_seconds)
    others = [request for place, request in enumerate(requests) if place != first]
    try:
        acquired += _acquire_each(node, others, slots)[0]
    except BaseException:
        for lease_id, _ in acquired:
            node.release(lease_id)
        raise
    return acquired, ()


def _acquire_each(
    node: Node, requests: Sequence[Request], slots: int | None
) -> tuple[list[tuple[str, GPUDevice]], dict[int, NoDevice]]:
    """What each can have without a wait, and by place why one has nothing."""
    acquired: list[tuple[str, GPUDevice]] = []
    refusals: dict[int, NoDevice] = {}
    try:
        for place, request in enumerate(requests):
            try:
                acquired += acquire_slots(node, request, slots=slots, wait_seconds=0)[0]
            except NoDevice as refused:
                refusals[place] = refused
    except BaseException:
        for lease_id, _ in acquired:
            node.release(lease_id)
        raise
    return acquired, refusals


def _acquire_everywhere(
    node: Node, request: Request, acquired: list[tuple[str, GPUDevice]]
) -> tuple[Decision, Decision]:
    """Lease what is free on every device that may serve; the decision on all, and the last one."""
    snapshot = node.snapshot(others=request.exclusive)
    decision = last = select(snapshot, request, policies=policies_for(request))
    if not acquired:
        tell_remarks(decision)
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


def common_request(requests: Sequence[Request]) -> Request:
    """What several requests, for a runtime each, have in common."""
    first = requests[0]
    return first if len(requests) == 1 else msgspec.structs.replace(first, runtime=None)


def tell_remarks(decision: Decision) -> None:
    """Log what the request names and is not here."""
    for remark in decision.remarks:
        logger.warning("%s", remark)


def tell_left_out(used: Iterable[GPUDevice], left_out: Iterable[Refusal]) -> None:
    """Log what would have done as well: that the host rests beside a GPU is no surprise."""
    names = ", ".join(device.device_id for device in used)
    for one in left_out:
        level = logging.INFO if one.rule == "class" else logging.WARNING
        logger.log(level, "using %s; left out %s: %s", names, one.device_id, one.reason)
