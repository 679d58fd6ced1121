"""Forecasts for the devices of this machine, from what was learned and what probes measured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from exo.gpu.nodes.experience import Experience, experience_path
from exo.gpu.telemetry.probe_cache import ProbeCache, cache_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.forecast import Forecast
    from exo.gpu.vocabulary.probe import Measure
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import Snapshot

SOONEST = "soonest"
"""The policy that needs forecasts; no other one pays for them."""


def foresight(
    request: Request, devices: Iterable[GPUDevice], environ: Mapping[str, str]
) -> Callable[[Snapshot], Snapshot]:
    """What adds forecasts to a snapshot, made once and then cheap; nothing for other policies.

    What was learned is read here, so that a decision under a lock does not wait for the disk.
    """
    if request.policy != SOONEST or not request.kind:
        return lambda snapshot: snapshot
    from exo.gpu.scheduling.finishing import with_finishes
    from exo.gpu.scheduling.prediction import SpeedPredictor
    from exo.gpu.scheduling.prediction_relations import Traits

    probes = ProbeCache(cache_path(environ))
    probes.refresh()
    traits: dict[str, Traits] = {}
    load_gbps: dict[str, float] = {}
    for device in devices:
        found = probes.find(device)
        traits[device.hardware_id] = Traits(
            model=device.name,
            memory_gbps=_median(found.memory_gbps) if found else None,
            gflops=_median(found.fp32_gflops) if found else None,
        )
        loads = _median(found.host_to_device_gbps) if found else None
        if loads:
            load_gbps[device.hardware_id] = loads
    predictor = SpeedPredictor(Experience(experience_path(environ)).lessons(), traits)
    known: dict[tuple[str, str], Forecast | None] = {}

    def tell(kind: str, hardware_id: str) -> Forecast | None:
        if (kind, hardware_id) not in known:
            known[kind, hardware_id] = predictor.predict(kind, hardware_id)
        return known[kind, hardware_id]

    for device in devices:
        tell(request.kind, device.hardware_id)
    return lambda snapshot: with_finishes(
        snapshot, request, tell, now_seconds=time.monotonic(), load_gbps=load_gbps
    )


def _median(measure: Measure | None) -> float | None:
    return None if measure is None else measure.median
