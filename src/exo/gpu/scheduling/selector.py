"""Which devices to take: filters, scores and a fixed order, then the class and runtime rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from exo.gpu.scheduling.constraints import contradictions, remarks_on, unknown_labels, unknown_names
from exo.gpu.scheduling.explanation import explain, refusal_message
from exo.gpu.scheduling.filters import FILTERS, Filter, names_of, refusals_of, that_matter
from exo.gpu.scheduling.groups import Candidate, judge
from exo.gpu.scheduling.ledger import FreeMemory, free_memory, lease_for, memory_figures
from exo.gpu.scheduling.policies import Policy, policy_named
from exo.gpu.scheduling.pool_room import within_pools
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
from exo.gpu.vocabulary.device import DeviceClass
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
    brief: bool = False,
) -> Decision:
    """Answer a request from a snapshot alone; the same two give the same answer.

    Unless the request names devices or asks for all, only one class and runtime is used: the first
    in the ranking that has ``request.count`` eligible devices; the rest is left out with the
    reason. A better class whose devices are only taken for now is waited for ("not now"): work for
    a GPU must not land on the host because the GPU is busy. Several devices are all or nothing,
    and are those that are joined best. ``policies`` may be named beside the presets. A ``brief``
    decision is the same without score terms, notes and second objections, in half the time.

    Raises:
        UnknownName: for a policy that is not known, with the near spelling.

    """
    policy = policy_named(request.policy, policies).asked(snapshot, request)
    rules = that_matter((*filters, *policy.filters), request)
    candidates: list[Candidate] = []
    refusals = [
        *contradictions(request),
        *unknown_names(snapshot, request.devices),
        *unknown_labels(snapshot, request.labels),
    ]
    for state in snapshot.devices:
        objections = refusals_of(state, snapshot, request, rules)
        first = next(objections, None)
        if first is not None:
            refusals.append(first if brief else _with_others(first, objections))
        else:
            candidates.append(_candidate(state, snapshot, request, policy, brief=brief))
    candidates.sort(key=lambda candidate: candidate.order)
    candidates = displays_last(candidates, lambda one: (one.device, one.place))
    candidates, refusals = within_pools(snapshot, request, candidates, refusals)
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
        remarks=remarks_on(snapshot, request),
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
    """What the request takes of each chosen device, and once of each of their machines.

    The lease on a machine's own processor holds that, where it is among them; else the first does.
    """
    states = {state.device.device_id: state for state in snapshot.devices}
    taken = [states[device_id] for device_id in chosen]
    bearers: dict[str, DeviceState] = {}
    for state in taken:
        if state.device.device_class is DeviceClass.HOST or state.device.node not in bearers:
            bearers[state.device.node] = state
    return tuple(
        lease_for(state, snapshot, request, with_host=bearers[state.device.node] is state)
        for state in taken
    )


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


def _with_others(first: Refusal, others: Iterable[Refusal]) -> Refusal:
    """The first objection, which is the answer, with what the other rules say."""
    found = [one for one in others if one.rule != first.rule]
    reasons = {one.rule: one.reason for one in reversed(found)}
    also = tuple(reversed(reasons.values()))
    return msgspec.structs.replace(first, also=also) if also else first


def _candidate(
    state: DeviceState, snapshot: Snapshot, request: Request, policy: Policy, *, brief: bool
) -> Candidate:
    device = state.device
    free_bytes, total_bytes, _ = memory_figures(state, snapshot)
    facts = facts_of(state, free_bytes, total_bytes)
    weight = state.settings.weight
    warm = bool(request.affinity_key) and request.affinity_key in state.warm_keys
    preferred = bool(request.prefer) and not set(names_of(device)).isdisjoint(request.prefer)
    if brief:
        total = policy.total(facts, warm=warm, weight=weight)
        score = Score(device_id=device.device_id, total=total)
    else:
        affinity = (request.affinity_key, warm) if request.affinity_key else None
        score = policy.score(device.device_id, facts, affinity=affinity, weight=weight)
        notes = tuple(_notes(state, free_memory(state, snapshot), request, preferred=preferred))
        score = msgspec.structs.replace(score, notes=notes)
    place = place_of(state, preferred=preferred)
    order = (
        device.device_class.rank,
        place,
        -score.total,
        -(state.measured_gflops or 0.0),
        -(free_bytes or 0),
        *identity_of(device),
    )
    return Candidate(device, score, place, order)


def facts_of(state: DeviceState, free_bytes: int | None, total_bytes: int | None) -> Facts | None:
    """What scorers look at; None for a device that was never sampled."""
    if state.sample is None:
        return None
    return Facts(state, state.sample, free_bytes, total_bytes)


def _notes(
    state: DeviceState, memory: FreeMemory, request: Request, *, preferred: bool
) -> Iterable[str]:
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
    if request.exclusive and state.foreign_untold:
        yield f"who else works there is not fully known: {state.foreign_untold}"
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
