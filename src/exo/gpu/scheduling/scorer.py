"""How good a device is right now: named terms that add up to one number within 0..1."""

from __future__ import annotations

import re
from collections.abc import Mapping

from exo.gpu.vocabulary.decision import Score, ScoreTerm
from exo.gpu.vocabulary.device import DeviceCapabilities
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.units import check_whole

MEMORY_WEIGHT = 0.6
COMPUTE_WEIGHT = 0.4
# Data-centre and desktop cards run at full clock up to about 80 C; the penalty is the one that
# callers of the score already rely on.
HEAT_FREE_CELSIUS = 80.0
HEAT_SPAN_CELSIUS = 40.0
LOWEST_PENALTY = 0.1

_DIGITS = re.compile(r"([0-9]+)")

Candidates = Mapping[str, tuple[GPUMetrics, DeviceCapabilities]]


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which ``vulkan:2`` comes before ``vulkan:10``."""
    parts = _DIGITS.split(text)
    return tuple(
        (1, int(part), part) if index % 2 else (0, 0, part) for index, part in enumerate(parts)
    )


def score_sample(
    device_id: str,
    sample: GPUMetrics | None,
    *,
    capacity_bytes: int | None = None,
    free_bytes: int | None = None,
) -> Score:
    """Score one sample, term by term.

    ``capacity_bytes`` stands in where the sample has no total; ``free_bytes`` replaces what the
    sample says is free where leases leave less. A missing reading drops its term and the weights
    of the others are scaled up; with every term missing the score is 0.
    """
    if sample is None:
        return Score(device_id=device_id, total=0.0, notes=("no sample yet",))
    memory = _memory_ratio(sample, capacity_bytes, free_bytes)
    percent = sample.compute_utilization_percent
    idle = None if percent is None else _clamp(1.0 - percent / 100.0)
    present = (MEMORY_WEIGHT if memory is not None else 0.0) + (
        COMPUTE_WEIGHT if idle is not None else 0.0
    )
    penalty = _penalty(sample.temperature_celsius)
    terms = (
        _term("memory", memory, MEMORY_WEIGHT, present, "use or total not reported"),
        _term("compute", idle, COMPUTE_WEIGHT, present, "utilization not reported"),
        penalty,
    )
    total = sum(term.weight * (term.value or 0.0) for term in terms[:2])
    factor = 1.0 if penalty.value is None else penalty.value
    return Score(device_id=device_id, total=_clamp(total * factor), terms=terms)


class DeviceScorer:
    """Scores and ranks devices by their samples.

    ``(0.6 * free / total + 0.4 * (1 - utilization / 100)) * penalty``, each part within 0..1;
    the penalty is 1 up to 80 C, then ``max(0.1, 1 - (t - 80) / 40)``.
    """

    @staticmethod
    def score_device(metrics: GPUMetrics, capabilities: DeviceCapabilities) -> float:
        """Within 0..1, higher is better; 0 where nothing was reported."""
        return DeviceScorer.explain_device(metrics, capabilities).total

    @staticmethod
    def explain_device(metrics: GPUMetrics, capabilities: DeviceCapabilities) -> Score:
        """The same score with each term, its weight and what was missing."""
        return score_sample(
            metrics.device_id, metrics, capacity_bytes=capabilities.max_memory_bytes
        )

    @staticmethod
    def rank_devices(devices: Candidates) -> list[tuple[str, float]]:
        """``(device_id, score)``, best first; ties by free memory, then by id, numbers as such."""
        scored = [
            (device_id, DeviceScorer.score_device(metrics, capabilities))
            for device_id, (metrics, capabilities) in devices.items()
        ]
        return sorted(
            scored,
            key=lambda pair: (-pair[1], -(_free(*devices[pair[0]]) or 0), natural_key(pair[0])),
        )

    @staticmethod
    def find_best_device(devices: Candidates, min_memory_bytes: int = 0) -> str | None:
        """The best device with at least ``min_memory_bytes`` free, busy ones included, or None.

        Where the use is not reported, the total counts as free; without a total the device holds
        no request for memory.

        Raises:
            InvalidValue: for a negative ``min_memory_bytes``.

        """
        check_whole("min_memory_bytes", min_memory_bytes)
        for device_id, _ in DeviceScorer.rank_devices(devices):
            free = _free(*devices[device_id])
            if min_memory_bytes == 0 or (free is not None and free >= min_memory_bytes):
                return device_id
        return None


def _free(metrics: GPUMetrics, capabilities: DeviceCapabilities) -> int | None:
    total = metrics.memory_total_bytes
    if total is None:
        total = capabilities.max_memory_bytes
    reserved = metrics.memory_reserved_bytes or 0
    return None if total is None else total - reserved - (metrics.memory_used_bytes or 0)


def _memory_ratio(
    sample: GPUMetrics, capacity_bytes: int | None, free_bytes: int | None
) -> float | None:
    total = sample.memory_total_bytes
    if total is None:
        total = capacity_bytes
    if sample.memory_used_bytes is None or not total:
        return None
    free = total - sample.memory_used_bytes - (sample.memory_reserved_bytes or 0)
    return _clamp((free if free_bytes is None else min(free, free_bytes)) / total)


def _term(name: str, value: float | None, weight: float, present: float, missing: str) -> ScoreTerm:
    if value is None:
        return ScoreTerm(name, None, 0.0, f"{missing}: term dropped")
    scaled = (
        "" if present == MEMORY_WEIGHT + COMPUTE_WEIGHT else "weight scaled up, a term is missing"
    )
    return ScoreTerm(name, value, weight / present, scaled)


def _penalty(celsius: float | None) -> ScoreTerm:
    if celsius is None:
        return ScoreTerm("heat", None, 1.0, "temperature not reported: no penalty")
    if celsius <= HEAT_FREE_CELSIUS:
        return ScoreTerm("heat", 1.0, 1.0, f"{celsius:g} C: no penalty")
    value = max(LOWEST_PENALTY, 1.0 - (celsius - HEAT_FREE_CELSIUS) / HEAT_SPAN_CELSIUS)
    return ScoreTerm("heat", value, 1.0, f"{celsius:g} C: penalty above {HEAT_FREE_CELSIUS:g} C")


def _clamp(value: float) -> float:
    return max(0.0, min(1.0, value))
