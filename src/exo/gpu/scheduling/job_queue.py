"""Whose turn it is: the line of waiting requests, its order, and who may pass whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from exo.gpu.scheduling.filters import FILTERS, Filter, first_refusal
from exo.gpu.scheduling.ledger import used_before
from exo.gpu.scheduling.policies import POLICIES, Policy
from exo.gpu.scheduling.selector import leases_of, select
from exo.gpu.vocabulary.decision import Decision, Refusal
from exo.gpu.vocabulary.lease import Waiter
from exo.gpu.vocabulary.request import DEFAULT_POLICY, Request
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# What one step of priority is worth. Ageing in one number: two steps more are overtaken by ten
# minutes of waiting more, so nobody waits for ever, however many important ones come.
PRIORITY_SECONDS = 300.0

# What more work counts as, in seconds of having come later. Twice the work is 76 hours (the
# logarithm): short work goes first, which keeps the mean wait least, while long work keeps nearly
# the order in which it came, so that the worst wait stays that of first come, first served. What
# is longest pays for that (the fifth of its length). Chosen by benchmarks/bench_online.py.
LOGARITHM_SECONDS = 110 * 3600.0
LENGTH_FACTOR = 0.2

# What one of unknown length is taken to need, so that those stand among themselves as they came.
UNKNOWN_DEVICE_SECONDS = 1800.0

# How many of those ahead are looked at in one decision. Who stands behind more waits for the
# line to grow shorter: a decision is a few dozen choices at most.
LOOK_AHEAD = 64

_LEASE_OF_WAITER = "waiting:"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one who asks may take now, with the line as it stands.

    ``head`` is the first ahead who cannot be served, with the devices that are kept for it; for
    whom nothing can be kept, the next takes its place as the head.
    ``served_first`` are those ahead who can be, and have not come for it yet.
    """

    decision: Decision
    ahead: tuple[Waiter, ...] = ()
    head: Waiter | None = None
    served_first: tuple[Waiter, ...] = ()


def place_in_line(waiter: Waiter) -> tuple[float, int]:
    """The smaller goes first; see :func:`place_of`."""
    request = waiter.request
    expected = request.expected_seconds
    place = place_of(
        waiter.arrived_seconds,
        request.priority,
        None if expected is None else expected * request.count,
    )
    return (place, waiter.number)


def place_of(
    arrived_seconds: float, priority: int = 0, expected_device_seconds: float | None = None
) -> float:
    """A place in the line, as if everybody had only come at some time.

    Who came earlier goes first, where each step of priority counts as minutes, and less work as
    having come earlier.
    """
    place = arrived_seconds - PRIORITY_SECONDS * priority
    if expected_device_seconds is None:
        return place
    return place + _later_seconds(expected_device_seconds) - _later_seconds(UNKNOWN_DEVICE_SECONDS)


def _later_seconds(device_seconds: float) -> float:
    """How much later so much work counts as having come than none at all."""
    logarithm = math.log1p(device_seconds / UNKNOWN_DEVICE_SECONDS)
    return LOGARITHM_SECONDS * logarithm + LENGTH_FACTOR * device_seconds


def in_order(waiters: Iterable[Waiter]) -> tuple[Waiter, ...]:
    """The line, the first one first."""
    return tuple(sorted(waiters, key=place_in_line))


def take_turn(
    line: Iterable[Waiter],
    asker: Waiter,
    snapshot: Snapshot,
    now_seconds: float,
    policies: Mapping[str, Policy] | None = None,
) -> Turn:
    """What ``asker`` may take, given everybody who waits.

    The line is walked in order. Who can be served now is taken to be served, although its process
    may still be waking up. The first who cannot be is the head: devices are kept for it, and who
    comes later passes only with what leaves the head's claim on them whole (see
    :func:`kept_for`). ``asker`` itself may or may not stand in the line; ``policies`` are those
    that it knows beside the presets.
    """
    own = place_in_line(asker)
    ahead = tuple(
        one
        for one in in_order(line)
        if place_in_line(one) < own and one.waiter_id != asker.waiter_id
    )
    head: Waiter | None = None
    served: list[Waiter] = []
    for waiter in ahead[:LOOK_AHEAD]:
        decision = _choose(snapshot, waiter, head, now_seconds, brief=True)
        if decision.chosen:
            served.append(waiter)
            snapshot = _with_leases(snapshot, waiter, decision.chosen, now_seconds)
        elif (head is None or not head.reserved) and not decision.never:
            kept = reserve(snapshot, waiter, now_seconds)
            head = kept if head is None or kept.reserved else head
    decision = _choose(snapshot, asker, head, now_seconds, policies)
    if len(ahead) > LOOK_AHEAD:
        decision = _too_far_back(decision, len(ahead))
    if (head is None or not head.reserved) and not decision.chosen and not decision.never:
        kept = reserve(snapshot, asker, now_seconds, own=True)
        head = kept if head is None or kept.reserved else head
    return Turn(decision=decision, ahead=ahead, head=head, served_first=tuple(served))


def reserve(snapshot: Snapshot, waiter: Waiter, now_seconds: float, *, own: bool = False) -> Waiter:
    """The waiter with the devices that are kept for it: those for which the fewest must end.

    A reservation that still holds what was promised stays, so that it cannot wander from device
    to device while others fill the rest; so does one on devices that are hidden from who asks,
    unless it is the waiter's ``own`` snapshot, where they are gone. Nothing is kept for one that
    would not be served even if every lease ended, as long as somebody else's memory is in its way.
    """
    view = _seen_by(snapshot, waiter)
    here = {state.device.device_id for state in view.devices}
    if waiter.reserved and (
        (not own and not here.issuperset(waiter.reserved))
        or _would_do(view, waiter, waiter.reserved)
    ):
        return waiter
    leased = sorted(
        (state for state in view.devices if state.leases),
        key=lambda state: (len(state.leases), _held_bytes(state), state.device.device_id),
    )
    steps = range(len(leased) + 1) if len(leased) <= LOOK_AHEAD else (0, len(leased))
    fresh = msgspec.structs.replace(waiter, reserved=(), reserved_seconds=now_seconds)
    for count in steps:
        freed = frozenset(state.device.device_id for state in leased[:count])
        decision = _answer(_freed(view, freed, now_seconds), waiter.request)
        if decision.chosen:
            return msgspec.structs.replace(fresh, reserved=decision.chosen)
    return fresh


def kept_for(head: Waiter, snapshot: Snapshot, now_seconds: float) -> Filter:
    """The rule that protects the head: a passer must fit beside it.

    On a device that is kept for the head, what was leased before the reservation is taken to end
    some time; what was taken since may last for ever. So a passer gets in only where it fits
    beside the head's own claim and all earlier passers, once the old leases are gone: on the
    device, in the pool behind it, and on its machine. Who says how long it takes also gets in where
    it ends before the head can begin, by what the holders of those devices said (EASY backfilling,
    Lifka 1995). Nobody is held to what was said, so nothing is promised about when.
    """
    since = now_seconds if head.reserved_seconds is None else head.reserved_seconds
    claim = _freed(snapshot, frozenset(head.reserved), since)
    claim = _with_leases(claim, head, head.reserved, now_seconds)
    states = {state.device.device_id: state for state in claim.devices}
    nodes = {states[name].device.node for name in head.reserved if name in states}
    begins_seconds = _begins_seconds(head, snapshot, now_seconds)

    def by_line(state: DeviceState, asked: Snapshot, request: Request) -> Refusal | None:
        """Not a device, or that part of it, which is kept for the first in the line."""
        device = state.device
        if device.node not in nodes or _is_askers_own(state, asked):
            return None
        expected = request.expected_seconds
        if expected is not None and now_seconds + expected <= begins_seconds:
            return None
        view = msgspec.structs.replace(claim, umbrella=asked.umbrella)
        refusal = first_refusal(states[device.device_id], view, request)
        reserved = device.device_id in head.reserved
        if refusal is None or refusal.permanent:
            return None
        if not reserved and first_refusal(state, asked, request) is not None:
            return None  # refused anyway, so this is not the reason
        who = head.request.holder or head.command or head.waiter_id
        kept = "is kept" if reserved else "shares what is kept"
        reason = f"{kept} for {who} (process {head.pid}), who is first in the line"
        return Refusal(device_id=device.device_id, rule="line", reason=reason, permanent=False)

    return by_line


def _begins_seconds(head: Waiter, snapshot: Snapshot, now_seconds: float) -> float:
    """Before this time no device that is kept for the head will be free for it, as was said.

    It is now where one of the holders said nothing, or has taken longer than it said.
    """
    kept = [state for state in snapshot.devices if state.device.device_id in head.reserved]
    ends = [
        min(
            now_seconds
            if lease.expected_seconds is None
            else lease.granted_seconds + lease.expected_seconds
            for lease in state.leases
        )
        for state in kept
        if state.leases
    ]
    return max(ends, default=now_seconds)


def _choose(
    snapshot: Snapshot,
    waiter: Waiter,
    head: Waiter | None,
    now_seconds: float,
    policies: Mapping[str, Policy] | None = None,
    *,
    brief: bool = False,
) -> Decision:
    view = _seen_by(snapshot, waiter)
    if head is None or not head.reserved:
        return _answer(view, waiter.request, FILTERS, policies, brief=brief)
    rules = (*FILTERS, kept_for(head, snapshot, now_seconds))
    return _answer(view, waiter.request, rules, policies, brief=brief)


def _answer(
    view: Snapshot,
    request: Request,
    filters: tuple[Filter, ...] = FILTERS,
    policies: Mapping[str, Policy] | None = None,
    *,
    brief: bool = True,
) -> Decision:
    """The decision on a request, also where its policy is of a package that only its asker has.

    Whoever stands ahead keeps its place then, on the devices that the default policy prefers.
    """
    if request.policy not in POLICIES and request.policy not in (policies or {}):
        request = msgspec.structs.replace(request, policy=DEFAULT_POLICY)
    return select(view, request, filters, policies=policies, brief=brief)


def _too_far_back(decision: Decision, count: int) -> Decision:
    """The decision of one before whom more wait than can be looked at."""
    reason = f"is for those ahead in the line, {count} of them"
    behind = tuple(
        Refusal(device_id=device_id, rule="line", reason=reason, permanent=False)
        for device_id in decision.chosen
    )
    return msgspec.structs.replace(decision, chosen=(), refusals=(*decision.refusals, *behind))


def _seen_by(snapshot: Snapshot, waiter: Waiter) -> Snapshot:
    """The devices that a waiter sees, with the leases under which it works itself."""
    visible = frozenset(waiter.visible)
    if waiter.umbrella == snapshot.umbrella and (
        not visible or all(state.device.hardware_id in visible for state in snapshot.devices)
    ):
        return snapshot
    seen: list[DeviceState] = []
    unseen = [*snapshot.unseen]
    for state in snapshot.devices:
        if not visible or state.device.hardware_id in visible:
            seen.append(state)
        elif not state.device.node:
            unseen += state.leases
    return msgspec.structs.replace(
        snapshot, umbrella=waiter.umbrella, devices=tuple(seen), unseen=tuple(unseen)
    )


def _would_do(view: Snapshot, waiter: Waiter, device_ids: Sequence[str]) -> bool:
    """Whether the reservation will serve the waiter once the older leases there have ended."""
    since = waiter.reserved_seconds if waiter.reserved_seconds is not None else 0.0
    kept = frozenset(device_ids)

    def by_reservation(state: DeviceState, snapshot: Snapshot, request: Request) -> Refusal | None:
        """Only the devices that are kept; the others are still there for what they share."""
        del snapshot, request
        device_id = state.device.device_id
        if device_id in kept:
            return None
        return Refusal(device_id=device_id, rule="line", reason="is not kept", permanent=True)

    filters = (by_reservation, *FILTERS)
    decision = _answer(_freed(view, kept, since), waiter.request, filters)
    return set(decision.chosen) == kept


def _freed(snapshot: Snapshot, device_ids: frozenset[str], since_seconds: float) -> Snapshot:
    """The snapshot as it will be when the leases granted until then on these devices have ended."""
    cleared = [
        state for state in snapshot.devices if state.device.device_id in device_ids and state.leases
    ]
    left = {
        (state.device.node, state.device.memory_pool): used_before(state, snapshot)
        for state in cleared
    }
    names = {state.device.device_id for state in cleared}

    def freed(state: DeviceState) -> DeviceState:
        pool = (state.device.node, state.device.memory_pool)
        if pool in left:  # the use of a pool is read where its keeper is, whoever held it
            state = _using(state, left[pool])
        if state.device.device_id not in names:
            return state
        leases = tuple(one for one in state.leases if one.granted_seconds > since_seconds)
        return msgspec.structs.replace(state, leases=leases)

    return msgspec.structs.replace(
        snapshot, devices=tuple(freed(state) for state in snapshot.devices)
    )


def _using(state: DeviceState, used_bytes: int | None) -> DeviceState:
    """The device with no more in use than that, where both are known."""
    sample = state.sample
    if sample is None or sample.memory_used_bytes is None or used_bytes is None:
        return state
    used = min(sample.memory_used_bytes, used_bytes)
    sample = msgspec.structs.replace(sample, memory_used_bytes=used)
    return msgspec.structs.replace(state, sample=sample)


def _with_leases(
    snapshot: Snapshot, waiter: Waiter, device_ids: Sequence[str], now_seconds: float
) -> Snapshot:
    """The snapshot as if the waiter had been served with those of these devices that are here."""
    here = {state.device.device_id for state in snapshot.devices}
    device_ids = [name for name in device_ids if name in here]
    taken = {
        lease.device_id: msgspec.structs.replace(
            lease,
            lease_id=f"{_LEASE_OF_WAITER}{waiter.waiter_id}",
            pid=waiter.pid,
            granted_seconds=now_seconds,
        )
        for lease in leases_of(snapshot, device_ids, waiter.request)
    }

    def served(state: DeviceState) -> DeviceState:
        lease = taken.get(state.device.device_id)
        if lease is None:
            return state
        return msgspec.structs.replace(state, leases=(*state.leases, lease))

    return msgspec.structs.replace(
        snapshot, devices=tuple(served(state) for state in snapshot.devices)
    )


def _is_askers_own(state: DeviceState, snapshot: Snapshot) -> bool:
    return any(lease.lease_id in snapshot.umbrella for lease in state.leases)


def _held_bytes(state: DeviceState) -> int:
    return sum(lease.memory_bytes or 0 for lease in state.leases)
