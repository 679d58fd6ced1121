"""When work would be done on each device: wait, load and run, put beside what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.forecast import Finish, Forecast
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.vocabulary.lease import Lease

    Tell = Callable[[str, str], Forecast | None]
    """The forecast of a kind on a device, by hardware id."""

# Work that takes longer than was told goes on for a tenth of the time it has taken already:
# nothing else is known of it, and it should not seem to be about to end for ever.
_OVERDUE = 0.1

_BYTES_PER_GB = 1e9


def with_finishes(
    snapshot: Snapshot,
    request: Request,
    tell: Tell,
    *,
    now_seconds: float,
    load_gbps: Mapping[str, float],
) -> Snapshot:
    """The snapshot with what each device is foretold to need for the request.

    A device that others share is waited for as long as what they still have to do, since whoever
    shares takes as much away. With an affinity key the request's memory is loaded at
    ``load_gbps`` (by hardware id, GB/s), unless a warm worker has it. ``now_seconds`` is on the
    machine's monotonic clock.
    """
    if not request.kind:
        return snapshot
    states = tuple(
        _foretold(state, request, tell, now_seconds, load_gbps.get(state.device.hardware_id))
        for state in snapshot.devices
    )
    return msgspec.structs.replace(snapshot, devices=states)


def _foretold(
    state: DeviceState, request: Request, tell: Tell, now_seconds: float, gbps: float | None
) -> DeviceState:
    run = tell(request.kind, state.device.hardware_id)
    if run is None:
        return state
    notes: list[str] = []
    wait = sum(_rest(lease, tell, now_seconds, notes) for lease in state.leases)
    load = _load(state, request, gbps, notes)
    finish = Finish(run=run, wait_seconds=wait, load_seconds=load, notes=tuple(notes))
    return msgspec.structs.replace(state, finish=finish)


def _rest(lease: Lease, tell: Tell, now_seconds: float, notes: list[str]) -> float:
    """Seconds that a lease is still expected to last; 0 with a note where nothing tells."""
    if lease.settling:
        return 0.0
    told = tell(lease.kind, lease.hardware_id) if lease.kind else None
    if told is None:
        notes.append(f"how long {lease.lease_id or 'a lease'} lasts is not known")
        return 0.0
    taken = max(now_seconds - lease.granted_seconds, 0.0)
    return max(told.seconds - taken, _OVERDUE * taken)


def _load(state: DeviceState, request: Request, gbps: float | None, notes: list[str]) -> float:
    if not request.affinity_key or request.affinity_key in state.warm_keys:
        return 0.0
    if not request.memory_bytes or not gbps:
        missing = "its size is not declared" if not request.memory_bytes else "no probe"
        notes.append(f"time to load {request.affinity_key!r} not known, {missing}")
        return 0.0
    return request.memory_bytes / (gbps * _BYTES_PER_GB)
