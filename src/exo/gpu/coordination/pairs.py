"""Measuring between devices: lease two, copy both ways from one process that sees only them."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from exo.gpu.coordination.probes import (
    Probes,
    Unanswered,
    busy,
    call_in_slot,
    lease_request,
    probe_devices,
)
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.filters import names_of
from exo.gpu.scheduling.selector import refusal_message
from exo.gpu.telemetry.pairs import (
    PAIR_SECONDS,
    PAIRING_BACKENDS,
    both_unmeasured,
    pair_here,
)
from exo.gpu.telemetry.probe import PROBE_SECONDS
from exo.gpu.telemetry.probe_cache import PairCache, pairs_path
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.probe import PairResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.snapshot import DeviceState


def probe_with_pairs(
    devices: Iterable[str] = (),
    *,
    force: bool = False,
    seconds: float = PROBE_SECONDS,
    pair_seconds: float = PAIR_SECONDS,
    node: Node | None = None,
) -> tuple[Probes, tuple[PairResult, ...]]:
    """Measure the devices as ``probe_devices`` does, then each ordered pair of them.

    Load counts as it was before: afterwards the devices are busy with their own measuring.

    Raises:
        NeverAvailable: for a name that no device here has.
        OSError: when the results cannot be kept.

    """
    if node is None:
        with LocalNode() as opened:
            return probe_with_pairs(
                devices, force=force, seconds=seconds, pair_seconds=pair_seconds, node=opened
            )
    named = tuple(devices)
    before = [
        state
        for state in node.snapshot().devices
        if not named or set(names_of(state.device)).intersection(named)
    ]
    probes = probe_devices(named, force=force, seconds=seconds, node=node)
    return probes, probe_pairs(node, before, force=force, seconds=pair_seconds)


def probe_pairs(
    node: Node, states: Sequence[DeviceState], *, force: bool = False, seconds: float = PAIR_SECONDS
) -> tuple[PairResult, ...]:
    """Both ways between any two of the devices, ``seconds`` each; what was measured is kept.

    Raises:
        OSError: when the results cannot be kept.

    """
    results: list[PairResult] = []
    for first, second in itertools.combinations(states, 2):
        reason = _never(first.device, second.device) or _not_now(first, second, force=force)
        if reason:
            results += both_unmeasured(first.device, second.device, reason)
        else:
            results += _pair(node, first, second, force=force, seconds=seconds)
    measured = [result for result in results if result.gbps is not None]
    if measured:
        PairCache(pairs_path(os.environ)).keep(measured)
    return tuple(results)


def _never(first: GPUDevice, second: GPUDevice) -> str:
    """Why the two can never be measured; empty where they can."""
    if first.backend != second.backend:
        return f"no copy leads from {first.backend} to {second.backend}: a program does it itself"
    if first.backend not in PAIRING_BACKENDS:
        return f"the {first.backend} backend does not show one process two devices to copy between"
    return ""


def _not_now(first: DeviceState, second: DeviceState, *, force: bool) -> str:
    """Why a measure would disturb, or be disturbed; empty where it would not."""
    for state in () if force else (first, second):
        reason = busy(state)
        if reason:
            return f"{state.device.device_id}: {reason}"
    return ""


def _pair(
    node: Node, first: DeviceState, second: DeviceState, *, force: bool, seconds: float
) -> list[PairResult]:
    """Both results, whatever becomes of the leases, the process and the drivers."""
    source, target = first.device, second.device
    leases: list[str] = []
    try:
        for state in (first, second):
            grant = node.acquire(lease_request(state, force=force))
            if not grant.lease_ids:
                return both_unmeasured(source, target, refusal_message(grant.decision))
            leases += grant.lease_ids
        changes = _visible(node, (source, target), tuple(leases))
        arguments = (source.to_json(), target.to_json(), seconds, changes)
        answer = call_in_slot(node, leases[0], pair_here, arguments, 2 * seconds)
    except BackendError as error:  # such as: they cannot be pinned
        return both_unmeasured(source, target, str(error))
    finally:
        for lease_id in leases:
            node.release(lease_id)
    if isinstance(answer, Unanswered):
        return both_unmeasured(source, target, answer.reason)
    return [PairResult.from_json(text) for text in answer]


def _visible(
    node: Node, devices: tuple[GPUDevice, GPUDevice], leases: tuple[str, ...]
) -> dict[str, str | None]:
    """Variables under which a process sees exactly the two.

    No variable of Vulkan's names several devices, but its loader takes several drivers.
    """
    if devices[0].backend != "vulkan":
        return node.environment(tuple(device.device_id for device in devices), leases)
    from exo.gpu.backends.vulkan import INDEX_VARIABLE
    from exo.gpu.backends.vulkan_manifests import LISTS

    each = [node.environment((device.device_id,), leases) for device in devices]
    manifests = dict.fromkeys(one[LISTS[0]] or "" for one in each)
    both = os.pathsep.join(manifests)
    return each[0] | dict.fromkeys(LISTS, both) | {INDEX_VARIABLE: None}
