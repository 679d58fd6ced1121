"""Which devices to take: filters, the class and runtime rules, scores and a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exo.gpu.scheduling.explanation import explain, refusal_message
from exo.gpu.scheduling.filters import FILTERS, Filter, first_refusal, unknown_names
from exo.gpu.scheduling.ledger import free_memory
from exo.gpu.scheduling.scorer import Candidates, DeviceScorer, natural_key, score_sample
from exo.gpu.vocabulary.decision import Decision, Refusal, Score
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot

__all__ = ["DeviceSelector", "explain", "refusal_message", "select"]

# A device of a higher tier is taken only when none of a lower one is left in its class.
_WELL, _DEGRADED, _SLEEPING, _UNSAMPLED = range(4)
_TIER_NOTES = {
    _DEGRADED: "degraded: behind every sound device",
    _SLEEPING: "asleep: behind every device that is awake, and woken when used",
    _UNSAMPLED: "no sample yet: behind every sampled device",
}

_Group = tuple[str, str]


class _Candidate(msgspec.Struct, frozen=True):
    """An eligible device with its score and its place in the order."""

    device: GPUDevice
    score: Score
    order: tuple[object, ...]


def select(snapshot: Snapshot, request: Request, filters: tuple[Filter, ...] = FILTERS) -> Decision:
    """Answer a request from a snapshot alone; the same two give the same answer.

    Unless the request names devices or asks for all, only one class and runtime is used: the first
    in the ranking that has ``request.count`` eligible devices; the rest is left out with the
    reason. A better class whose devices are only taken for now is waited for ("not now"): work for
    a GPU must not land on the host because the GPU is busy. Several devices are all or nothing.
    """
    candidates: list[_Candidate] = []
    refusals = list(unknown_names(snapshot, request))
    for state in snapshot.devices:
        refusal = first_refusal(state, snapshot, request, filters)
        if refusal is None:
            candidates.append(_candidate(state, snapshot))
        else:
            refusals.append(refusal)
    candidates.sort(key=lambda candidate: candidate.order)
    sizes = _possible_groups(snapshot, request, refusals)
    holder = _class_holder(snapshot, request, refusals, sizes)
    allowed = [one for one in candidates if not _is_below(one.device, holder)]
    group = _first_group(allowed, request)
    members = [one for one in allowed if _group(one.device, request) == group]
    others = [one for one in candidates if one not in members]
    best = members[0].device if members else holder
    enough = len(members) >= request.count
    return Decision(
        request=request,
        chosen=tuple(one.device.device_id for one in members[: request.count]) if enough else (),
        ranking=tuple(one.score for one in candidates),
        refusals=tuple(refusals),
        left_out=tuple(_left_out(one.device, best) for one in others if best is not None),
        table_version=snapshot.version,
        never_reason="" if enough else _never_reason(request, sizes),
    )


def _candidate(state: DeviceState, snapshot: Snapshot) -> _Candidate:
    device = state.device
    memory = free_memory(state, snapshot)
    score = score_sample(
        device.device_id,
        state.sample,
        capacity_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
    )
    tier = _tier(state)
    notes = [_TIER_NOTES[tier]] if tier in _TIER_NOTES else []
    if tier == _DEGRADED and state.health_reason:
        notes.append(state.health_reason)
    if memory.note:
        notes.append(f"{memory.note}{' (assumed)' if memory.assumed else ''}")
    if state.measured_gflops is not None:
        notes.append(f"measured at {state.measured_gflops:,.0f} GFLOP/s: breaks ties")
    order = (
        device.device_class.rank,
        tier,
        -score.total,
        -(state.measured_gflops or 0.0),
        -(memory.free_bytes or 0),
        natural_key(device.hardware_id),
        natural_key(device.node),
        natural_key(device.device_id),
    )
    return _Candidate(device, msgspec.structs.replace(score, notes=tuple(notes)), order)


def _tier(state: DeviceState) -> int:
    if state.sample is None:
        return _UNSAMPLED
    if state.sample.sleeping or state.health is Health.SLEEPING:
        return _SLEEPING
    return _DEGRADED if state.health is Health.DEGRADED else _WELL


def _group(device: GPUDevice, request: Request) -> _Group:
    """Devices of the same group may work together for this request."""
    if request.all_devices or request.devices:
        return ("", "")
    return (str(device.device_class), device.runtime)


def _possible_groups(
    snapshot: Snapshot, request: Request, refusals: Sequence[Refusal]
) -> dict[_Group, int]:
    """How many devices of each group could serve, now or later."""
    hopeless = {refusal.device_id for refusal in refusals if refusal.permanent}
    sizes: dict[_Group, int] = {}
    for state in snapshot.devices:
        if state.device.device_id not in hopeless:
            group = _group(state.device, request)
            sizes[group] = sizes.get(group, 0) + 1
    return sizes


def _class_holder(
    snapshot: Snapshot,
    request: Request,
    refusals: Sequence[Refusal],
    sizes: dict[_Group, int],
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
        if state.device.device_id in taken and sizes[_group(state.device, request)] >= request.count
    ]
    return min(holders, key=lambda device: device.device_class.rank, default=None)


def _is_below(device: GPUDevice, holder: GPUDevice | None) -> bool:
    return holder is not None and device.device_class.rank > holder.device_class.rank


def _first_group(candidates: Sequence[_Candidate], request: Request) -> _Group | None:
    groups: dict[_Group, int] = {}
    for candidate in candidates:
        group = _group(candidate.device, request)
        groups[group] = groups.get(group, 0) + 1
    for group, members in groups.items():
        if members >= request.count:
            return group
    return next(iter(groups), None)


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


def _never_reason(request: Request, sizes: dict[_Group, int]) -> str:
    """Why waiting is in vain although single devices would do, or nothing."""
    if not sizes or max(sizes.values()) >= request.count:
        return ""
    counts = ", ".join(
        " ".join((*filter(None, group), str(size))) for group, size in sorted(sizes.items())
    )
    mixed = len(sizes) > 1 and sum(sizes.values()) >= request.count
    advice = "; a request for all devices takes unlike ones together" if mixed else ""
    what = "of one class and runtime " if mixed else ""
    return f"{request.count} devices {what}asked for, and here could serve: {counts}{advice}"


class DeviceSelector:
    """Ranks a fixed set of ``{device_id: (GPUMetrics, DeviceCapabilities)}`` and picks the best.

    It takes every sample as current; age, health and leases are looked at by :func:`select`.
    """

    def __init__(self, devices: Candidates) -> None:
        """Keep the devices as they are at this moment."""
        self._devices = dict(devices)

    def rank_devices(self) -> list[tuple[str, float]]:
        """``(device_id, score)``, best first."""
        return DeviceScorer.rank_devices(self._devices)

    def select_best_device(self, min_memory_bytes: int = 0) -> str | None:
        """The best device with that much memory free, a busy one where nothing better is, or None.

        Raises:
            InvalidValue: for a negative ``min_memory_bytes``.

        """
        return DeviceScorer.find_best_device(self._devices, min_memory_bytes)
