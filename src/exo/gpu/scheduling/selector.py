"""Which devices to take: filters, scores and a fixed order, then the class and runtime rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from exo.gpu.scheduling.constraints import contradictions, unknown_labels, unknown_names
from exo.gpu.scheduling.explanation import explain, refusal_message
from exo.gpu.scheduling.filters import FILTERS, Filter, names_of, refusals_of
from exo.gpu.scheduling.groups import Candidate, judge
from exo.gpu.scheduling.ledger import FreeMemory, free_memory, lease_for
from exo.gpu.scheduling.policies import Policy, policy_named
from exo.gpu.scheduling.scorer import Candidates, DeviceScorer, Facts
from exo.gpu.scheduling.standing import (
    AVOIDED_NOTE,
    DISPLAY_NOTE,
    PREFERRED_NOTE,
    TIER_NOTES,
    displays_last,
    identity_of,
    place_of,
    tier_of,
)
from exo.gpu.vocabulary.decision import Allotment, Decision, Refusal, Score
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot

__all__ = ["DeviceSelector", "explain", "rank", "refusal_message", "select", "select_many"]


def select(
    snapshot: Snapshot,
    request: Request,
    filters: tuple[Filter, ...] = FILTERS,
    *,
    policies: Mapping[str, Policy] | None = None,
) -> Decision:
    """Answer a request from a snapshot alone; the same two give the same answer.

    Unless the request names devices or asks for all, only one class and runtime is used: the first
    in the ranking that has ``request.count`` eligible devices; the rest is left out with the
    reason. A better class whose devices are only taken for now is waited for ("not now"): work for
    a GPU must not land on the host because the GPU is busy. Several devices are all or nothing,
    and are those that are joined best. ``policies`` may be named beside the presets.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """
    policy = policy_named(request.policy, policies)
    rules = (*filters, *policy.filters)
    candidates: list[Candidate] = []
    refusals = [
        *contradictions(request),
        *unknown_names(snapshot, request),
        *unknown_labels(snapshot, request),
    ]
    for state in snapshot.devices:
        objections = list(refusals_of(state, snapshot, request, rules))
        if objections:
            refusals.append(_with_others(objections))
        else:
            candidates.append(_candidate(state, snapshot, request, policy))
    candidates.sort(key=lambda candidate: candidate.order)
    candidates = displays_last(candidates, lambda one: (one.device, one.place))
    verdict = judge(snapshot, request, candidates, refusals)
    return Decision(
        request=request,
        chosen=verdict.chosen,
        ranking=tuple(one.score for one in candidates),
        refusals=tuple(refusals),
        left_out=verdict.left_out,
        table_version=snapshot.version,
        never_reason=verdict.never_reason,
        slowest_link=verdict.slowest_link,
    )


def select_many(
    snapshot: Snapshot,
    requests: Iterable[Request],
    filters: tuple[Filter, ...] = FILTERS,
    *,
    policies: Mapping[str, Policy] | None = None,
) -> tuple[Allotment, ...]:
    """Answer requests one after the other, each seeing what the earlier ones took.

    Nothing is written anywhere: the leases have no id yet, and are for the caller to take.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """
    allotments: list[Allotment] = []
    for request in requests:
        decision = select(snapshot, request, filters, policies=policies)
        taken = leases_of(snapshot, decision.chosen, request)
        allotments.append(Allotment(decision, taken))
        snapshot = _with_leases(snapshot, taken)
    return tuple(allotments)


def rank(
    snapshot: Snapshot, request: Request, *, policies: Mapping[str, Policy] | None = None
) -> tuple[Score, ...]:
    """The scores of all devices that will do, best first, the class and runtime rules left out.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """
    return select(snapshot, request, policies=policies).ranking


def leases_of(snapshot: Snapshot, chosen: Iterable[str], request: Request) -> tuple[Lease, ...]:
    """What the request takes of each chosen device, and once of each of their machines."""
    states = {state.device.device_id: state for state in snapshot.devices}
    nodes: set[str] = set()
    leases: list[Lease] = []
    for device_id in chosen:
        state = states[device_id]
        first = state.device.node not in nodes
        nodes.add(state.device.node)
        leases.append(lease_for(state, snapshot, request, with_host=first))
    return tuple(leases)


def _with_leases(snapshot: Snapshot, leases: Iterable[Lease]) -> Snapshot:
    new = {lease.device_id: lease for lease in leases}
    return msgspec.structs.replace(
        snapshot,
        devices=tuple(
            msgspec.structs.replace(state, leases=(*state.leases, new[state.device.device_id]))
            if state.device.device_id in new
            else state
            for state in snapshot.devices
        ),
    )


def _with_others(objections: list[Refusal]) -> Refusal:
    """The first objection, which is the answer, with what the other rules say."""
    first, *others = objections
    reasons = {one.rule: one.reason for one in reversed(others) if one.rule != first.rule}
    also = tuple(reversed(reasons.values()))
    return msgspec.structs.replace(first, also=also) if also else first


def _candidate(
    state: DeviceState, snapshot: Snapshot, request: Request, policy: Policy
) -> Candidate:
    device = state.device
    memory = free_memory(state, snapshot)
    facts = facts_of(state, memory.free_bytes, memory.total_bytes)
    affinity = None
    if request.affinity_key:
        affinity = (request.affinity_key, request.affinity_key in state.warm_keys)
    score = policy.score(device.device_id, facts, affinity=affinity, weight=state.settings.weight)
    preferred = not set(names_of(device)).isdisjoint(request.prefer)
    place = place_of(state, preferred=preferred)
    order = (
        device.device_class.rank,
        place,
        -score.total,
        -(state.measured_gflops or 0.0),
        -(memory.free_bytes or 0),
        *identity_of(device),
    )
    notes = tuple(_notes(state, memory, preferred=preferred))
    return Candidate(device, msgspec.structs.replace(score, notes=notes), place, order)


def facts_of(state: DeviceState, free_bytes: int | None, total_bytes: int | None) -> Facts | None:
    """What scorers look at; None for a device that was never sampled."""
    if state.sample is None:
        return None
    return Facts(state, state.sample, free_bytes, total_bytes)


def _notes(state: DeviceState, memory: FreeMemory, *, preferred: bool) -> Iterable[str]:
    tier = tier_of(state)
    if tier in TIER_NOTES:
        yield TIER_NOTES[tier]
    if state.health is Health.DEGRADED and state.health_reason:
        yield state.health_reason
    if preferred:
        yield PREFERRED_NOTE
    elif state.settings.avoid:
        yield AVOIDED_NOTE
    if state.device.drives_display:
        yield DISPLAY_NOTE
    if memory.note:
        yield f"{memory.note}{' (assumed)' if memory.assumed else ''}"
    if state.measured_gflops is not None:
        yield f"measured at {state.measured_gflops:,.0f} GFLOP/s: breaks ties"


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
