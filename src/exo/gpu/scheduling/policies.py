"""How devices are weighed: presets of named terms, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from exo.gpu.scheduling.constraints import Filter
from exo.gpu.scheduling.scorer import (
    COMPUTE_WEIGHT,
    MEMORY_WEIGHT,
    ComputeIdle,
    Facts,
    Heat,
    MemoryFree,
    Scorer,
    clamped,
    factor_term,
    scaled_terms,
    weighted,
)
from exo.gpu.vocabulary.decision import Score, ScoreTerm
from exo.gpu.vocabulary.errors import UnknownName
from exo.gpu.vocabulary.request import DEFAULT_POLICY, Request
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import format_size

# A third of what free memory weighs: a loaded model draws work, a full card does not.
AFFINITY_WEIGHT = 0.2

# Less than one step of what is lost, so that it only decides between devices that lose as much.
TIE_WEIGHT = 0.005

# The score of each is one half at these points. They only spread the figures for people: the
# order of devices is the same for any.
HALF_SPEED_GFLOPS = 10_000.0
HALF_EFFICIENCY_GFLOPS_PER_WATT = 50.0
HALF_FREE_BYTES = 2.0**30
HALF_FINISH_SECONDS = 60.0
# Every GPU has shut itself down well before.
HOTTEST_CELSIUS = 120.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Scorers with their weights, factors of the sum, and filters beside the usual ones.

    The score is the mean of the terms by their weights times every factor. A term that is not
    known is dropped and the weights of the others are scaled up; an unknown factor is 1.
    """

    name: str
    terms: tuple[tuple[Scorer, float], ...]
    factors: tuple[Scorer, ...] = ()
    filters: tuple[Filter, ...] = ()
    asking: tuple[Callable[[Snapshot, Request], tuple[Scorer, float]], ...] = ()
    """Further terms that only what is asked for and all that is there can give."""

    def asked(self, snapshot: Snapshot, request: Request) -> Policy:
        """The policy for one request: its further terms stand before the others."""
        if not self.asking:
            return self
        further = tuple(term(snapshot, request) for term in self.asking)
        return msgspec.structs.replace(self, terms=(*further, *self.terms), asking=())

    def total(self, facts: Facts | None, *, warm: bool = False, weight: float = 1.0) -> float:
        """The score alone; None stands for a device that was never sampled."""
        if facts is None:
            return 0.0
        total = weighted([(scorer.value(facts), part) for scorer, part in self.terms])
        for scorer in self.factors:
            value = scorer.value(facts)
            if value is not None:
                total *= value
        total = clamped(total) * weight
        return total + AFFINITY_WEIGHT if warm else total

    def score(
        self,
        device_id: str,
        facts: Facts | None,
        *,
        affinity: tuple[str, bool] | None = None,
        weight: float = 1.0,
    ) -> Score:
        """The same with every term; ``affinity`` is the key asked for, and whether it is warm."""
        warm = affinity is not None and affinity[1]
        total = self.total(facts, warm=warm, weight=weight)
        if facts is None:
            return Score(device_id=device_id, total=total, notes=("no sample yet",))
        values = [scorer.value(facts) for scorer, _ in self.terms]
        terms = [
            *scaled_terms(
                [scorer.name for scorer, _ in self.terms],
                values,
                [part for _, part in self.terms],
                [
                    scorer.note(facts, value)
                    for (scorer, _), value in zip(self.terms, values, strict=True)
                ],
            )
        ]
        for scorer in self.factors:
            value = scorer.value(facts)
            terms.append(factor_term(scorer.name, value, scorer.note(facts, value)))
        if weight != 1:
            terms.append(factor_term("weight", weight, "set by a person"))
        if affinity is not None:
            terms.append(_affinity_term(*affinity))
        return Score(device_id=device_id, total=total, terms=tuple(terms))


class Figure(msgspec.Struct, frozen=True):
    """A scorer made of two functions: the value of the facts, and what to say of it."""

    name: str
    measure: Callable[[Facts], float | None]
    words: Callable[[Facts, float | None], str]

    def value(self, facts: Facts) -> float | None:
        """What the first function says."""
        return self.measure(facts)

    def note(self, facts: Facts, value: float | None) -> str:
        """What the second function says."""
        return self.words(facts, value)


def policy_named(name: str, others: Mapping[str, Policy] | None = None) -> Policy:
    """The policy of that name, among the presets and ``others``.

    Raises:
        UnknownName: with the near spelling.

    """
    found = POLICIES.get(name) or (others or {}).get(name)
    if found is None:
        raise UnknownName("policy", name, {*POLICIES, *(others or ())})
    return found


def _affinity_term(key: str, warm: bool) -> ScoreTerm:
    holds = "holds" if warm else "holds no"
    note = f"a warm worker {holds} {key!r}" if warm else f"no warm worker holds {key!r}"
    return ScoreTerm("affinity", float(warm), AFFINITY_WEIGHT, note)


def _saturating(value: float, half: float) -> float:
    return value / (value + half)


def _speed(facts: Facts) -> float | None:
    gflops = facts.state.measured_gflops
    return None if gflops is None else _saturating(gflops, HALF_SPEED_GFLOPS)


def _speed_words(facts: Facts, value: float | None) -> str:
    if value is None:
        return "speed not measured, see 'exo-gpu probe'"
    return f"measured at {facts.state.measured_gflops:,.0f} GFLOP/s"


def _coolness(facts: Facts) -> float | None:
    celsius = facts.sample.temperature_celsius
    return None if celsius is None else clamped(1.0 - celsius / HOTTEST_CELSIUS)


def _coolness_words(facts: Facts, value: float | None) -> str:
    return (
        "temperature not reported" if value is None else f"{facts.sample.temperature_celsius:g} C"
    )


def _fit(facts: Facts) -> float | None:
    free = facts.free_bytes
    return None if free is None else HALF_FREE_BYTES / (HALF_FREE_BYTES + free)


def _fit_words(facts: Facts, value: float | None) -> str:
    if value is None:
        return "free memory not known"
    return f"{format_size(facts.free_bytes)} free: the less, the better it fits"


def _quiet(facts: Facts) -> float | None:
    return 1.0 / (1.0 + len(facts.state.leases))


def _quiet_words(facts: Facts, value: float | None) -> str:
    del value
    count = len(facts.state.leases)
    return f"{count} {'lease' if count == 1 else 'leases'}"


def _sooner(facts: Facts) -> float | None:
    finish = facts.state.finish
    return None if finish is None else HALF_FINISH_SECONDS / (HALF_FINISH_SECONDS + finish.seconds)


def _sooner_words(facts: Facts, value: float | None) -> str:
    finish = facts.state.finish
    if value is None or finish is None:
        return "nothing like it was seen, or its kind was not said"
    parts = (
        f"wait {finish.wait_seconds:.3g} s",
        f"load {finish.load_seconds:.3g} s",
        f"run {finish.run.seconds:.3g} s",
    )
    ranged = f"done in {finish.seconds:.3g} s, nine times of ten within"
    words = f"{ranged} {finish.low_seconds:.3g}..{finish.high_seconds:.3g}: {' + '.join(parts)}"
    return "; ".join(filter(None, (words, finish.run.basis, *finish.notes)))


def _watts(facts: Facts) -> float | None:
    limit = facts.sample.power_limit_watts
    return limit if limit else facts.sample.power_watts


def _efficiency(facts: Facts) -> float | None:
    gflops, watts = facts.state.measured_gflops, _watts(facts)
    if gflops is None or not watts:
        return None
    return _saturating(gflops / watts, HALF_EFFICIENCY_GFLOPS_PER_WATT)


def _efficiency_words(facts: Facts, value: float | None) -> str:
    gflops, watts = facts.state.measured_gflops, _watts(facts)
    if value is None or gflops is None or not watts:
        missing = "speed not measured" if gflops is None else "power not reported"
        return f"work per watt not known, {missing}"
    which = "limit" if facts.sample.power_limit_watts else "draw"
    return f"{gflops / watts:.1f} GFLOP/s a watt of its power {which}"


def _losses(snapshot: Snapshot, request: Request) -> tuple[Scorer, float]:
    from exo.gpu.scheduling.device_losses import DeviceLosses  # NumPy, for those who ask for it

    return DeviceLosses(snapshot, request), 1.0 - TIE_WEIGHT


_MEMORY, _COMPUTE, _HEAT = MemoryFree(), ComputeIdle(), Heat()
_PRESETS = (
    Policy(
        name=DEFAULT_POLICY,
        terms=((_MEMORY, MEMORY_WEIGHT), (_COMPUTE, COMPUTE_WEIGHT)),
        factors=(_HEAT,),
    ),
    Policy(name="fastest", terms=((Figure("speed", _speed, _speed_words), 1.0),)),
    Policy(name="coolest", terms=((Figure("cool", _coolness, _coolness_words), 1.0),)),
    Policy(name="pack", terms=((Figure("fit", _fit, _fit_words), 1.0),)),
    Policy(
        name="spread",
        terms=((Figure("leases", _quiet, _quiet_words), 0.8), (_MEMORY, 0.2)),
        factors=(_HEAT,),
    ),
    Policy(
        name="fragmentation",
        terms=((Figure("fit", _fit, _fit_words), TIE_WEIGHT),),
        asking=(_losses,),
    ),
    Policy(name="soonest", terms=((Figure("finish", _sooner, _sooner_words), 1.0),)),
    Policy(name="efficient", terms=((Figure("work", _efficiency, _efficiency_words), 1.0),)),
)

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in _PRESETS}
"""The policies that a request may name."""
