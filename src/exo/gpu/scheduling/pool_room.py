"""Several devices with one memory behind them: how many of them a request may have at once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from exo.gpu.scheduling.groups import Candidate, Group, group_of
from exo.gpu.scheduling.ledger import pool_figures
from exo.gpu.vocabulary.decision import Refusal
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import format_size


def within_pools(
    snapshot: Snapshot,
    request: Request,
    candidates: Sequence[Candidate],
    refusals: Sequence[Refusal],
) -> tuple[list[Candidate], list[Refusal]]:
    """Candidates that fit their pools together, and the refusals with those of the others.

    Each device of several takes its memory from the pool behind it, so of those that share one
    only as many are left as it has room for, the best ones. Where it could never hold more, no
    wait brings the others back.
    """
    kept, told = list(candidates), list(refusals)
    if request.count == 1 or not request.memory_bytes:
        return kept, told
    for (_, pool), members in snapshot.pools.items():
        figures = pool_figures(members[0], snapshot) if len(members) > 1 else None
        if figures is not None:
            beside = request.host_memory_bytes or 0 if pool == HOST_POOL else 0
            now, ever = (max(0, size - beside) // request.memory_bytes for size in figures)
            groups = {one.device.device_id: group_of(one.device, request) for one in members}
            kept, told = _seated(
                kept, told, groups, _Room(format_size(request.memory_bytes), now, ever)
            )
    return kept, told


class _Room(msgspec.Struct, frozen=True):
    """How many of a pool's devices may have what is ``asked`` of each: now, and at most ever."""

    asked: str
    now: int
    ever: int


def _seated(
    candidates: list[Candidate], refusals: list[Refusal], groups: dict[str, Group], room: _Room
) -> tuple[list[Candidate], list[Refusal]]:
    """The same for one pool. Only devices of a group, which may work together, share the room."""
    seats = dict.fromkeys(groups.values(), 0)
    kept: list[Candidate] = []
    told: list[Refusal] = []
    for one in candidates:
        name = one.device.device_id
        if name in groups:
            seats[groups[name]] += 1
            if (seat := seats[groups[name]]) > room.now:
                told.append(_too_many(name, room, permanent=seat > room.ever))
                continue
        kept.append(one)
    for refusal in refusals:
        again, group = refusal, groups.get(refusal.device_id)
        if group is not None and not refusal.permanent:
            seats[group] += 1
            if seats[group] > room.ever:
                again = _too_many(refusal.device_id, room, permanent=True)
                again = msgspec.structs.replace(again, also=(refusal.reason, *refusal.also))
        told.append(again)
    return kept, told


def _too_many(device_id: str, room: _Room, *, permanent: bool) -> Refusal:
    enough = f"{room.ever} x {room.asked}" if permanent else f"{room.now} x {room.asked} now"
    reason = f"shares its memory with others of these, enough for {enough}"
    return Refusal(device_id=device_id, rule="memory", reason=reason, permanent=permanent)
