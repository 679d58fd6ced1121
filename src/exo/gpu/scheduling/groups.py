"""Which devices may work together: one class and one runtime, unless a request says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from exo.gpu.scheduling.gangs import Gang, Links, find_gang
from exo.gpu.vocabulary.decision import Refusal, Score
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.links import Interconnect
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Snapshot

Group = tuple[str, str]


class Candidate(msgspec.Struct, frozen=True):
    """An eligible device with its score and its place in the order."""

    device: GPUDevice
    score: Score
    place: int
    order: tuple[object, ...]


class Verdict(msgspec.Struct, frozen=True):
    """Who serves, who would do but is left out, and why no wait helps where that is so."""

    chosen: tuple[str, ...]
    left_out: tuple[Refusal, ...]
    never_reason: str = ""
    slowest_link: str = ""


def group_of(device: GPUDevice, request: Request) -> Group:
    """Devices of the same group may work together for this request."""
    if request.all_devices or request.devices:
        return ("", "")
    return (str(device.device_class), device.runtime)


def judge(
    snapshot: Snapshot,
    request: Request,
    candidates: Sequence[Candidate],
    refusals: Sequence[Refusal],
) -> Verdict:
    """Apply the class and runtime rules to the candidates, which stand best first."""
    links = Links(snapshot.links, snapshot.routes) if request.count > 1 else Links()
    possible = _possible_groups(snapshot, request, refusals)
    feasible = {name for name, members in possible.items() if _could(members, request, links)}
    holder = _class_holder(snapshot, request, refusals, feasible)
    allowed = [one for one in candidates if not _is_below(one.device, holder)]
    groups: dict[Group, list[Candidate]] = {}
    for one in allowed:
        groups.setdefault(group_of(one.device, request), []).append(one)
    gang, members = _first_gang(groups.values(), request, links)
    taken = {one.device.device_id for one in members}
    best = members[0].device if members else holder
    left_out = [one.device for one in candidates if one.device.device_id not in taken]
    return Verdict(
        chosen=tuple(members[place].device.device_id for place in gang.places) if gang else (),
        left_out=tuple(_left_out(one, best) for one in left_out if best is not None),
        never_reason="" if gang else _never_reason(request, possible, bool(feasible)),
        slowest_link=gang.slowest_link if gang else "",
    )


def _first_gang(
    groups: Iterable[list[Candidate]], request: Request, links: Links
) -> tuple[Gang | None, list[Candidate]]:
    """The gang of the first group that has one, with its group; else the first group of all."""
    first: list[Candidate] = []
    for members in groups:
        first = first or members
        devices = [one.device for one in members]
        gang = find_gang(devices, [one.place // 2 for one in members], request, links)
        if gang is not None:
            return gang, members
    return None, first


def _could(devices: Sequence[GPUDevice], request: Request, links: Links) -> bool:
    if len(devices) < request.count:
        return False
    if request.count == 1 or not (
        request.same_node or request.interconnect is not Interconnect.ANY
    ):
        return True
    return find_gang(devices, [0] * len(devices), request, links) is not None


def _possible_groups(
    snapshot: Snapshot, request: Request, refusals: Sequence[Refusal]
) -> dict[Group, list[GPUDevice]]:
    """The devices of each group that could serve, now or later."""
    hopeless = {refusal.device_id for refusal in refusals if refusal.permanent}
    groups: dict[Group, list[GPUDevice]] = {}
    for state in snapshot.devices:
        if state.device.device_id not in hopeless:
            groups.setdefault(group_of(state.device, request), []).append(state.device)
    return groups


def _class_holder(
    snapshot: Snapshot, request: Request, refusals: Sequence[Refusal], feasible: set[Group]
) -> GPUDevice | None:
    """A device that is only taken for now, of the best class that could serve; else None.

    A device that failed holds nothing: nobody knows when it comes back.
    """
    if request.all_devices or request.devices:
        return None
    taken = {
        one.device_id
        for one in refusals
        if not one.permanent and one.rule not in {"health", "cordon"}
    }
    holders = [
        state.device
        for state in snapshot.devices
        if state.device.device_id in taken and group_of(state.device, request) in feasible
    ]
    return min(holders, key=lambda device: device.device_class.rank, default=None)


def _is_below(device: GPUDevice, holder: GPUDevice | None) -> bool:
    return holder is not None and device.device_class.rank > holder.device_class.rank


def _left_out(device: GPUDevice, chosen: GPUDevice) -> Refusal:
    ask = f"ask for device {device.device_id}, or for all devices"
    if device.device_class is not chosen.device_class:
        rule = "class"
        reason = (
            f"is of class {device.device_class}, while the best that can serve, "
            f"{chosen.device_id}, is {chosen.device_class}; {ask}"
        )
    else:
        rule = "runtime"
        reason = (
            f"belongs to runtime {device.runtime}, while the best that can serve, "
            f"{chosen.device_id}, is {chosen.runtime}; ask for runtime {device.runtime}, "
            f"for device {device.device_id}, or for all devices"
        )
    return Refusal(device_id=device.device_id, rule=rule, reason=reason, permanent=False)


def _never_reason(
    request: Request, possible: dict[Group, list[GPUDevice]], any_feasible: bool
) -> str:
    """Why waiting is in vain although single devices would do, or nothing."""
    if not possible or any_feasible:
        return ""
    sizes = {group: len(members) for group, members in possible.items()}
    counts = ", ".join(
        " ".join((*filter(None, group), str(size))) for group, size in sorted(sizes.items())
    )
    if max(sizes.values()) >= request.count:
        wishes = ["on one machine" if request.same_node else "", _JOINED[request.interconnect]]
        return (
            f"{request.count} devices are asked for, {' and '.join(filter(None, wishes))}, and no "
            f"{request.count} of those here are ({counts})"
        )
    mixed = len(sizes) > 1 and sum(sizes.values()) >= request.count
    advice = "; a request for all devices takes unlike ones together" if mixed else ""
    what = "of one class and runtime " if mixed else ""
    return f"{request.count} devices {what}asked for, and here could serve: {counts}{advice}"


_JOINED = {
    Interconnect.ANY: "",
    Interconnect.NVLINK: "each two joined by NVLink",
    Interconnect.SAME_SWITCH: "each two on one PCIe switch or better",
}
