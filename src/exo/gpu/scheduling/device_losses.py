"""The policy ``fragmentation`` for the devices of one moment: what each would lose of its room.

What is usually asked for is taken from what is leased at that moment, and from the request itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from exo.gpu.scheduling.fragmentation import STEP_MILLI, Fragmentation
from exo.gpu.scheduling.ledger import memory_figures
from exo.gpu.scheduling.machines import WHOLE_MILLI, Demand, Floats, States
from exo.gpu.scheduling.scorer import Facts, clamped
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.request import Request
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# The score is one half where nothing is lost or won, and 0 where all of two devices is lost.
SPAN_MILLI = 4.0 * WHOLE_MILLI


class DeviceLosses:
    """A score by what a request would take of the room that is of use to what is usually asked for.

    Devices with as much memory are weighed together, and those of one machine share its cores. The
    processor of a machine is not weighed, nor a device whose memory is not known.
    """

    name = "losses"

    def __init__(self, snapshot: Snapshot, request: Request) -> None:
        """Weigh every device of the snapshot for this request."""
        self._saved_milli: dict[str, float] = {}
        alike: dict[int, list[DeviceState]] = {}
        for state in snapshot.devices:
            total_bytes = memory_figures(state, snapshot)[1]
            if total_bytes and state.device.device_class is not DeviceClass.HOST:
                alike.setdefault(total_bytes, []).append(state)
        for total_bytes, states in alike.items():
            self._saved_milli |= _saved_milli(snapshot, request, states, total_bytes)

    def value(self, facts: Facts) -> float | None:
        """Within 0..1 in steps, higher where less is lost; None where it is not weighed."""
        saved = self._saved_milli.get(facts.state.device.device_id)
        if saved is None:
            return None
        if not math.isfinite(saved):
            return 0.0
        return clamped(0.5 + math.floor(saved / STEP_MILLI) * STEP_MILLI / SPAN_MILLI)

    def note(self, facts: Facts, value: float | None) -> str:
        """How much of a device would be lost or won, in percent."""
        saved = self._saved_milli.get(facts.state.device.device_id)
        if value is None or saved is None:
            return "its memory is not known, or it is the processor"
        if not math.isfinite(saved):
            return "it does not fit"
        done = "wins" if saved >= 0 else "loses"
        percent = 100 * abs(saved) / WHOLE_MILLI
        return f"{done} {percent:.0f} % of a device for what is usually asked for"


def _saved_milli(
    snapshot: Snapshot, request: Request, devices: Sequence[DeviceState], total_bytes: int
) -> dict[str, float]:
    """By device, what the losses fall by; minus infinity where the request does not fit."""
    demand = _asked(request, devices, total_bytes)
    saved = {state.device.device_id: -math.inf for state in devices}
    if demand is None:
        return saved
    machines: dict[str, list[tuple[int, str]]] = {}
    for state in devices:
        free_milli = _free_milli(state, snapshot, request, total_bytes)
        machines.setdefault(state.device.node, []).append((free_milli, state.device.device_id))
    cores = {node: _cores_milli(snapshot, node) for node in machines}
    width = max(map(len, machines.values()))
    states = States(("",), width, cores_per_gpu=_cores_per_gpu(snapshot, machines))
    rows = {node: sorted(rests) for node, rests in machines.items()}
    numbers = np.array(
        [
            states.number(
                0,
                len(rests),
                cores[node],
                (0,) * (width - len(rests)) + tuple(rest for rest, _ in rests),
            )
            for node, rests in rows.items()
        ],
        np.int64,
    )
    fits = states.fits(numbers, demand)
    if not fits.any():
        return saved
    policy = Fragmentation(_usual(snapshot, demand, devices, total_bytes))
    gained, places = policy.gained(states, numbers[fits], demand)
    fitting = [rests for rests, fit in zip(rows.values(), fits.tolist(), strict=True) if fit]
    for rests, row in zip(fitting, gained + demand.total_gpu_milli, strict=True):
        saved |= _by_device(rests, row, demand, whole=places is None)
    return saved


def _by_device(
    rests: Sequence[tuple[int, str]], row: Floats, demand: Demand, *, whole: bool
) -> dict[str, float]:
    """The figures of a machine's devices; ``rests`` ascend, as the columns do at their end."""
    if whole:
        return {name: float(row[0]) for rest, name in rests if rest >= demand.gpu_milli}
    columns = row[len(row) - len(rests) :].tolist()
    best: dict[int, float] = {}  # only the first of equal rests has a figure of its own
    for (rest, _), figure in zip(rests, columns, strict=True):
        best[rest] = max(figure, best.get(rest, -math.inf))
    return {name: best[rest] for rest, name in rests}


def _usual(
    snapshot: Snapshot, demand: Demand, devices: Sequence[DeviceState], total_bytes: int
) -> Mapping[Demand, int]:
    """How often each kind of demand stands among the leases, and the request once."""
    counts: Counter[Demand] = Counter((demand,))
    for lease in _leases(snapshot):
        gpu_milli = _milli(lease, _slots(devices), total_bytes)
        if gpu_milli is not None:
            cpu_milli = WHOLE_MILLI * (lease.host_cpus or 0)
            counts[Demand(cpu_milli=cpu_milli, memory_bytes=0, gpus=1, gpu_milli=gpu_milli)] += 1
    return counts


def _leases(snapshot: Snapshot) -> Iterable[Lease]:
    for state in snapshot.devices:
        if state.device.device_class is not DeviceClass.HOST:
            yield from state.leases
    yield from snapshot.unseen


def _asked(request: Request, devices: Sequence[DeviceState], total_bytes: int) -> Demand | None:
    gpu_milli = _milli(request, request.slots or _slots(devices), total_bytes)
    if gpu_milli is None:
        return None
    return Demand(
        cpu_milli=WHOLE_MILLI * (request.host_cpus or 0),
        memory_bytes=0,
        gpus=request.count,
        gpu_milli=gpu_milli,
    )


def _milli(asked: Request | Lease, slots: int, total_bytes: int) -> int | None:
    """What it takes of a device with so much memory, in thousandths; None for more than all.

    Rounded down, as what is free is, so that three thirds fill a device; the filters look at bytes.
    """
    if asked.exclusive:
        return WHOLE_MILLI
    parts: list[float] = []
    if asked.share is not None:
        parts.append(asked.share)
    if asked.memory_bytes is not None:
        parts.append(asked.memory_bytes / total_bytes)
    part = max(parts) if parts else 1 / slots
    return max(1, int(WHOLE_MILLI * part)) if part <= 1 else None


def _slots(devices: Sequence[DeviceState]) -> int:
    return max(1, devices[0].device.slots)


def _free_milli(state: DeviceState, snapshot: Snapshot, request: Request, total_bytes: int) -> int:
    """What is free of a device by its leases, and by its memory where memory is asked for."""
    slots = max(1, state.device.slots)
    held = sum(_milli(lease, slots, total_bytes) or WHOLE_MILLI for lease in state.leases)
    if request.memory_bytes is None:
        return max(0, WHOLE_MILLI - held)
    free_bytes = memory_figures(state, snapshot)[0] or 0
    by_memory = WHOLE_MILLI * free_bytes // total_bytes
    return max(0, min(WHOLE_MILLI, by_memory, WHOLE_MILLI - held))


def _cores_milli(snapshot: Snapshot, node: str) -> int:
    """Free cores of a machine; as many as can be where nobody knows."""
    host = snapshot.hosts.get(node)
    if host is None:
        return np.iinfo(np.int64).max // 2
    held = sum(lease.host_cpus or 0 for lease in snapshot.host_leases.get(node, ()))
    return WHOLE_MILLI * max(0, host.device.slots - held)


def _cores_per_gpu(snapshot: Snapshot, machines: Mapping[str, Sequence[object]]) -> float:
    """Of all these machines; infinite where those of one are not known."""
    if any(node not in snapshot.hosts for node in machines):
        return math.inf
    cores = sum(snapshot.hosts[node].device.slots for node in machines)
    return cores / sum(map(len, machines.values()))
