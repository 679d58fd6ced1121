"""What health rules look at: one number, or None where unknown, and the limits it is held to."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from exo.gpu.telemetry.health import rules
from exo.gpu.vocabulary.health import DeviceFault, Health, ThrottleKind
from exo.gpu.vocabulary.metrics import GPUMetrics

# A window is kept in so many parts: the rise of a counter leaves it in steps of a sixtieth.
_PARTS = 60
# Sets of limits whose rules are kept ready: about one for each model of device.
_PLANS_KEPT = 256


class Rise:
    """By how much a counter rose within a window; a step back is a reset, and forgets all."""

    __slots__ = ("_before", "_last", "_parts", "_window_seconds")

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._last: int | None = None
        self._before: int | None = None
        self._parts: deque[tuple[float, int]] = deque()

    def add(self, value: int, now: float) -> bool:
        """Take the counter's value; True where it stepped back."""
        last, self._last = self._last, value
        if last is not None and value < last:
            self._parts.clear()
            self._before = last
            return True
        rise = value - last if last is not None else 0
        # Back where it was before a single low value: that was a reading gone wrong, and no rise.
        if value == self._before:
            rise = 0
        self._before = None
        if rise:
            part_seconds = self._window_seconds / _PARTS
            if self._parts and now - self._parts[-1][0] < part_seconds:
                began, amount = self._parts.pop()
                self._parts.append((began, amount + rise))
            else:
                self._parts.append((now, rise))
        return False

    def total(self, now: float) -> int | None:
        """The rise within the window; None before the first value."""
        while self._parts and now - self._parts[0][0] > self._window_seconds:
            self._parts.popleft()
        return None if self._last is None else sum(amount for _, amount in self._parts)


class Facts:
    """All that rules may look at; ``fresh`` where the sample is of now."""

    __slots__ = (
        "failing",
        "faults",
        "fresh",
        "hanging",
        "missing",
        "now",
        "rises",
        "sample",
        "silent_seconds",
    )

    def __init__(self) -> None:
        """Nothing is known."""
        self.now = 0.0
        self.sample: GPUMetrics | None = None
        self.fresh = False
        self.silent_seconds: float | None = None
        self.failing = ""
        self.hanging = False
        self.missing = False
        self.faults: dict[int, DeviceFault] = {}
        self.rises: dict[str, Rise] = {}

    def detail(self, rule: rules.Rule) -> str:
        """What a message says of the one case: the faults behind it, or why a read failed."""
        if rule.looks_at.startswith(rules.FAULT):
            action = rule.looks_at.removeprefix(rules.FAULT)
            return "; ".join(fault.what for fault in self.faults.values() if fault.action == action)
        return self.failing


Look = Callable[[Facts], float | None]


def look_of(rule: rules.Rule) -> Look:
    """How a rule finds its number."""
    kind, _, what = rule.looks_at.rpartition(".")
    if f"{kind}." == rules.THROTTLE:
        return _throttle(ThrottleKind(what))
    if f"{kind}." == rules.RISE:
        return lambda facts: _rise(facts, rule.name)
    if f"{kind}." == rules.FAULT:
        return lambda facts: sum(fault.action == what for fault in facts.faults.values())
    return _FLAGS.get(what) or _reading(what)


def _rise(facts: Facts, name: str) -> float | None:
    rise = facts.rises.get(name)
    return None if rise is None else rise.total(facts.now)


def _reading(field: str) -> Look:
    """A reading; of a device that is powered down, the least there is."""

    def look(facts: Facts) -> float | None:
        sample = facts.sample
        if sample is None or not facts.fresh:
            return None
        return -math.inf if sample.sleeping else getattr(sample, field)

    return look


def _throttle(kind: ThrottleKind) -> Look:
    def look(facts: Facts) -> float | None:
        sample = facts.sample
        if sample is None or not facts.fresh:
            return None
        if sample.sleeping:
            return 0.0
        kinds = sample.throttle_kinds
        return None if kinds is None else float(kind in kinds)

    return look


def _sleeping(facts: Facts) -> float | None:
    sample = facts.sample
    return None if sample is None or not facts.fresh else float(sample.sleeping)


_FLAGS: dict[str, Look] = {
    rules.SILENT: lambda facts: facts.silent_seconds,
    # Whether a call that hangs would fail in the end, nobody knows.
    rules.FAILING: lambda facts: None if facts.hanging else float(bool(facts.failing)),
    rules.HANGING: lambda facts: float(facts.hanging),
    rules.MISSING: lambda facts: float(facts.missing),
    rules.SLEEPING: _sleeping,
}


class Bound(NamedTuple):
    """A rule for one device: its thresholds, and what it then says."""

    rule: rules.Rule
    look: Look
    above: float
    until: float
    health: Health
    message: str

    def said(self, facts: Facts) -> str:
        """The reason in words."""
        return self.message.replace("{detail}", facts.detail(self.rule))


Plan = tuple[Bound, ...]


def planner(followed: Iterable[rules.Rule]) -> Callable[[rules.Limits], Plan]:
    """Gives the rules as they are for a device with such limits; like devices share theirs."""
    looks = [(rule, look_of(rule)) for rule in followed]

    @functools.lru_cache(maxsize=_PLANS_KEPT)
    def plan(limits: rules.Limits) -> Plan:
        return tuple(_bound(rule, look, limits) for rule, look in looks)

    return plan


def _bound(rule: rules.Rule, look: Look, limits: rules.Limits) -> Bound:
    own: float | None = getattr(limits, rule.limit) if rule.limit else None
    above = rule.above if own is None else own
    until = rule.until if own is None else own - (rule.above - rule.until)
    health = rule.health if own is not None else rule.assumed_health or rule.health
    whose = "the usual" if own is None else "its own"
    message = rule.message.replace("{limit:g}", f"{above:g}").replace("{whose}", whose)
    return Bound(rule, look, above, until, health, message)


def worst(found: list[tuple[Health, str]]) -> tuple[Health, tuple[str, ...]]:
    """The worst health that was found, and all reasons, the worst first."""
    found.sort(key=lambda one: -rules.SEVERITY.index(one[0]))
    return found[0][0] if found else Health.OK, tuple(reason for _, reason in found)
