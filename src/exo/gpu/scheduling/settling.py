"""Whether the memory of a lease that has ended is really back."""

from __future__ import annotations

from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.snapshot import DeviceState

# A desktop's own use moves by so much within seconds; a context alone holds more (CUDA's is
# 300 MiB and up).
NEAR_BYTES = 256 * 2**20


def is_settled(lease: Lease, state: DeviceState, listed_pids: frozenset[int] | None) -> bool:
    """Whether a device's use is explained without the lease; its sample is newer than the end.

    ``listed_pids`` are the processes on the driver's list, None where it gives none. Where the
    driver is known to have listed the lease's processes, their absence decides. Else the use must
    be near what it was before the lease, plus what the others there declared. Where the use is
    not known, or others declared nothing, nothing can be told and nobody is kept waiting.
    """
    if listed_pids is not None and lease.seen_pids:
        return listed_pids.isdisjoint(lease.seen_pids)
    used = None if state.sample is None else state.sample.memory_used_bytes
    if used is None or lease.used_before_bytes is None:
        return True
    declared = [one.memory_bytes for one in state.leases if one.lease_id != lease.lease_id]
    if any(one is None for one in declared):
        return True
    return used <= lease.used_before_bytes + sum(one or 0 for one in declared) + NEAR_BYTES
