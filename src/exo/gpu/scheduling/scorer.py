"""How good a device is right now: named terms that add up to one number within 0..1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from exo.gpu.vocabulary.decision import Score, ScoreTerm
from exo.gpu.vocabulary.device import DeviceCapabilities
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState
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


class Facts(msgspec.Struct, frozen=True):
    """What a scorer may look at: a device, its newest sample, and the memory that counts.

    ``free_bytes`` is what leases leave free, ``capacity_bytes`` the total; None where unknown.
    """

    state: DeviceState
    sample: GPUMetrics
    free_bytes: int | None
    capacity_bytes: int | None


class Scorer(Protocol):
    """One term of a score. A class of your own with these three makes a policy of your own."""

    @property
    def name(self) -> str:
        """What the term is called in explanations."""
        ...

    def value(self, facts: Facts) -> float | None:
        """Within 0..1, higher is better; None where what it takes is not known."""
        ...

    def note(self, facts: Facts, value: float | None) -> str:
        """What people should know of the value; with None, why there is none."""
        ...


class MemoryFree:
    """The part of the memory that is free once leases are honoured."""

    name = "memory"

    def value(self, facts: Facts) -> float | None:
        """Free over total, within 0..1."""
        return _memory_ratio(facts.sample, facts.capacity_bytes, facts.free_bytes)

    def note(self, facts: Facts, value: float | None) -> str:
        """Only that it is missing, where it is."""
        del facts
        return "" if value is not None else "use or total not reported"


class ComputeIdle:
    """The part of the compute that nobody uses."""

    name = "compute"

    def value(self, facts: Facts) -> float | None:
        """1 less the utilization, within 0..1."""
        return _idle(facts.sample)

    def note(self, facts: Facts, value: float | None) -> str:
        """Only that it is missing, where it is."""
        del facts
        return "" if value is not None else "utilization not reported"


class Heat:
    """A penalty for what runs hot: a factor of the score."""

    name = "heat"

    def value(self, facts: Facts) -> float | None:
        """1 up to 80 C, then falling to 0.1 at 116 C."""
        return _penalty(facts.sample.temperature_celsius)

    def note(self, facts: Facts, value: float | None) -> str:
        """The temperature, and whether it costs."""
        del value
        return _penalty_note(facts.sample.temperature_celsius)


def score_sample(
    device_id: str,
    sample: GPUMetrics | None,
    *,
    capacity_bytes: int | None = None,
    free_bytes: int | None = None,
) -> Score:
    """Score one sample by memory, compute and heat, term by term.

    ``capacity_bytes`` stands in where the sample has no total; ``free_bytes`` replaces what the
    sample says is free where leases leave less. A missing reading drops its term and the weights
    of the others are scaled up; with every term missing the score is 0.
    """
    if sample is None:
        return Score(device_id=device_id, total=0.0, notes=("no sample yet",))
    memory = _memory_ratio(sample, capacity_bytes, free_bytes)
    idle, penalty = _idle(sample), _penalty(sample.temperature_celsius)
    values, weights = (memory, idle), (MEMORY_WEIGHT, COMPUTE_WEIGHT)
    notes = (
        "" if memory is not None else "use or total not reported",
        "" if idle is not None else "utilization not reported",
    )
    terms = scaled_terms(("memory", "compute"), values, weights, notes)
    heat = factor_term("heat", penalty, _penalty_note(sample.temperature_celsius))
    total = weighted(zip(values, weights, strict=True)) * (1.0 if penalty is None else penalty)
    return Score(device_id=device_id, total=clamped(total), terms=(*terms, heat))


def weighted(parts: Iterable[tuple[float | None, float]]) -> float:
    """The mean of the known values by their weights; 0 where none is known."""
    known: list[tuple[float, float]] = []
    present = 0.0
    for value, weight in parts:
        if value is not None:
            present += weight
            known.append((value, weight))
    total = 0.0
    for value, weight in known:
        total += weight / present * value
    return total


def scaled_terms(
    names: Sequence[str],
    values: Sequence[float | None],
    weights: Sequence[float],
    notes: Sequence[str],
) -> tuple[ScoreTerm, ...]:
    """The terms of :func:`weighted`; where one is missing, the others' weights are scaled up."""
    known = [weight for value, weight in zip(values, weights, strict=True) if value is not None]
    present = sum(known)
    all_known = len(known) == len(values)
    terms: list[ScoreTerm] = []
    for name, value, weight, note in zip(names, values, weights, notes, strict=True):
        if value is None:
            terms.append(ScoreTerm(name, None, 0.0, f"{note}: term dropped"))
            continue
        scaled = "" if all_known else "weight scaled up, a term is missing"
        words = ", ".join(filter(None, (note, scaled)))
        terms.append(ScoreTerm(name, value, weight / present, words))
    return tuple(terms)


def factor_term(name: str, value: float | None, note: str) -> ScoreTerm:
    """A term that multiplies the score; None leaves it as it is."""
    return ScoreTerm(name, value, 1.0, note, multiplies=True)


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
    if free_bytes is not None and free_bytes < free:
        free = free_bytes
    return clamped(free / total)


def _idle(sample: GPUMetrics) -> float | None:
    percent = sample.compute_utilization_percent
    return None if percent is None else clamped(1.0 - percent / 100.0)


def _penalty(celsius: float | None) -> float | None:
    if celsius is None:
        return None
    if celsius <= HEAT_FREE_CELSIUS:
        return 1.0
    return max(LOWEST_PENALTY, 1.0 - (celsius - HEAT_FREE_CELSIUS) / HEAT_SPAN_CELSIUS)


def _penalty_note(celsius: float | None) -> str:
    if celsius is None:
        return "temperature not reported: no penalty"
    if celsius <= HEAT_FREE_CELSIUS:
        return f"{celsius:g} C: no penalty"
    return f"{celsius:g} C: penalty above {HEAT_FREE_CELSIUS:g} C"


def clamped(value: float) -> float:
    """The nearest value within 0..1."""
    # By comparison: this stands in the middle of every decision, and calls cost more.
    if value < 0.0:
        return 0.0
    return value if value < 1.0 else 1.0
