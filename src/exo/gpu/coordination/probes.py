"""Measuring devices: lease one, measure it from a pinned process, keep the result, let go."""

from __future__ import annotations

import os
import queue
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.coordination.slots import refusal
from exo.gpu.execution.payloads import dump, load_error, load_result
from exo.gpu.nodes.local import LocalNode
from exo.gpu.nodes.transport import CordonKeeper
from exo.gpu.scheduling.filters import names_of, unknown_names
from exo.gpu.scheduling.selector import refusal_message, select
from exo.gpu.telemetry.probe import FIGURES, PROBE_SECONDS, probe_here, unmeasured
from exo.gpu.telemetry.probe_cache import ProbeCache, cache_path
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.job import (
    Ending,
    SlotDied,
    SlotEvent,
    SlotFailed,
    SlotOutcomes,
    SlotSetup,
    Work,
)
from exo.gpu.vocabulary.probe import ProbeResult
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import Cordon
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

# Work below that is the desktop's; more of it would be measured along.
BUSY_PERCENT = 10.0

# A forced probe beside other leases asks for what it takes: two buffers of 256 MiB, and a context.
FORCED_BYTES = 2**30

# A process that measures is killed when it takes so much longer than it should: its start on a
# loaded machine, and a driver's.
START_SECONDS = 30.0


class Probes(msgspec.Struct, frozen=True):
    """What was measured, and by device id why the rest was left alone."""

    results: tuple[ProbeResult, ...]
    refusals: dict[str, str]
    lifted: tuple[Cordon, ...] = ()
    """Cordons by health that ended, since the probe of their device passed."""


def probe_devices(
    devices: Iterable[str] = (),
    *,
    force: bool = False,
    seconds: float = PROBE_SECONDS,
    node: Node | None = None,
) -> Probes:
    """Measure the devices that are named, or every device, one after the other.

    Each is leased as a whole for so long. One that is leased, busy, asleep or cordoned is left
    alone; ``force`` measures it all the same, except under somebody else's lease of the whole
    device. A cordon by health ends when its device could be measured; a person's does not.
    What was measured is kept for :meth:`~exo.gpu.nodes.agent.NodeAgent.snapshot`.

    Raises:
        NeverAvailable: for a name that no device here has.
        OSError: when the results cannot be kept.

    """
    if node is None:
        with LocalNode() as opened:
            return probe_devices(devices, force=force, seconds=seconds, node=opened)
    named = Request(devices=tuple(devices))
    snapshot = node.snapshot()
    if unknown_names(snapshot, named.devices):
        raise refusal(select(snapshot, named))
    results: list[ProbeResult] = []
    refusals: dict[str, str] = {}
    for state in snapshot.devices:
        device = state.device
        if named.devices and not set(names_of(device)).intersection(named.devices):
            continue
        answer = _probe(node, state, force=force, seconds=seconds)
        if isinstance(answer, str):
            refusals[device.device_id] = answer
        else:
            results.append(answer)
    measured = [result for result in results if _has_figures(result)]
    if measured:
        ProbeCache(cache_path(os.environ)).keep(measured)
    lifted = _lift_cordons(node, snapshot, {result.hardware_id for result in measured})
    return Probes(tuple(results), refusals, lifted)


def _lift_cordons(node: Node, snapshot: Snapshot, passed: set[str]) -> tuple[Cordon, ...]:
    """End the cordons by health of the devices that passed, where the node keeps any."""
    if not isinstance(node, CordonKeeper):
        return ()
    ended = [
        node.lift_cordon(state.device.hardware_id, by_health_only=True)
        for state in snapshot.devices
        if state.cordon is not None and state.device.hardware_id in passed
    ]
    return tuple(cordon for cordon in ended if cordon is not None)


def _has_figures(result: ProbeResult) -> bool:
    return any(getattr(result, name) is not None for name in FIGURES)


def _probe(node: Node, state: DeviceState, *, force: bool, seconds: float) -> ProbeResult | str:
    """What was measured, or why the device was left alone."""
    device = state.device
    reason = "" if force else busy(state)
    if reason:
        return reason
    grant = node.acquire(lease_request(state, force=force))
    if not grant.lease_ids:
        return refusal_message(grant.decision)
    (lease_id,) = grant.lease_ids
    try:
        return _measure(node, device, lease_id, seconds)
    except BackendError as error:  # such as: it cannot be pinned
        return unmeasured(device, str(error), at=time.time())
    finally:
        node.release(lease_id)


def lease_request(state: DeviceState, *, force: bool) -> Request:
    """The device as a whole, or with ``force`` a part of it beside the leases that it has."""
    shared = force and state.leases
    return Request(
        devices=(state.device.device_id,),
        exclusive=not shared,
        memory_bytes=FORCED_BYTES if shared else None,
        despite_cordon=force,
        holder="exo-gpu probe",
    )


def busy(state: DeviceState) -> str:
    """Why a measure would disturb, or be disturbed; empty where it would not."""
    if state.leases:
        whole = [lease for lease in state.leases if lease.exclusive]
        holder = (whole or state.leases)[0].holder or "somebody"
        if whole:
            return f"not now: it is wholly leased by {holder}"
        return f"not now: it is leased by {holder} (--force measures beside it)"
    if state.cordon is not None:
        return _kept_out(state.cordon)
    sample = state.sample
    if sample is None:
        return ""
    if sample.sleeping:
        return "not now: it is asleep, and measuring would wake it (--force)"
    percent = sample.compute_utilization_percent
    limit = BUSY_PERCENT
    if state.device.device_class is DeviceClass.HOST:
        limit += 100.0 / state.device.slots  # this command itself is work on one core
    if percent is not None and percent > limit:
        return f"not now: it is {percent:.0f} % busy (--force measures all the same)"
    return ""


def _kept_out(cordon: Cordon) -> str:
    """Why a cordoned device is left alone: health may be wrong about it, a person is asked."""
    what = f"not now: it is cordoned by {cordon.by}: {cordon.why}"
    if cordon.by_health:
        return f"{what} (--force measures it, and lifts the cordon if that goes well)"
    return f"{what} (--force measures it all the same)"


def _measure(node: Node, device: GPUDevice, lease_id: str, seconds: float) -> ProbeResult:
    answer = call_in_slot(node, lease_id, probe_here, (device.to_json(), seconds), seconds)
    if isinstance(answer, Unanswered):
        return unmeasured(device, answer.reason, at=time.time())
    return ProbeResult.from_json(answer)


class Unanswered(msgspec.Struct, frozen=True):
    """Why a process that measures gave no result."""

    reason: str


def call_in_slot(
    node: Node,
    lease_id: str,
    function: Callable[..., object],
    arguments: tuple[object, ...],
    seconds: float,
) -> Any:
    """What ``function`` returns in a process of its own, which is killed when its driver hangs."""
    events: queue.SimpleQueue[SlotEvent] = queue.SimpleQueue()
    slot_id = node.open_slot(lease_id, SlotSetup(import_path=tuple(sys.path)), events.put)
    no_keywords: dict[str, object] = {}
    call = (function, arguments, no_keywords)
    node.submit(slot_id, Work(work_id=0, items=(0,), payloads=(dump(call, "the probe"),)))
    ends = time.monotonic() + seconds + START_SECONDS
    answered = False
    try:
        while True:
            event = events.get(timeout=max(0.0, ends - time.monotonic()))
            if isinstance(event, SlotOutcomes):
                answered = True
                return _read(event)
            if isinstance(event, (SlotDied, SlotFailed)):
                return Unanswered(event.reason)
    except queue.Empty:
        return Unanswered(f"its driver gave no answer within {seconds + START_SECONDS:g} s")
    finally:
        node.close_slots((slot_id,), kill=not answered)


def _read(event: SlotOutcomes) -> Any:
    (outcome,) = event.outcomes
    if outcome.ending is Ending.SUCCEEDED:
        return load_result(outcome.payload)
    return Unanswered(str(load_error(outcome.payload)))
