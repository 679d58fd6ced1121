"""What is remembered of one device's health: the rules that hold, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.telemetry.health.measures import Bound, Facts, Plan, Rise, worst
from exo.gpu.telemetry.health.rules import FAULT, RISE
from exo.gpu.vocabulary.health import Health, HealthVerdict
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS

if TYPE_CHECKING:
    from exo.gpu.vocabulary.metrics import GPUMetrics


class _Condition:
    """A rule that holds, is about to hold, or is about to end, since a monotonic time."""

    __slots__ = ("clearing_at", "holds", "pending_at", "reason")

    def __init__(self, now: float) -> None:
        self.holds = False
        self.pending_at = now
        self.clearing_at: float | None = None
        self.reason = ""


class DeviceRecord(Facts):
    """What is remembered of one device: bounded by the number of rules and of faults kept."""

    __slots__ = ("conditions", "energy_joules", "heard_at", "plan", "stale_seconds", "verdict")

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.conditions: dict[str, _Condition] = {}
        self.heard_at: float | None = None
        self.energy_joules: float | None = None
        self.stale_seconds = STALE_AFTER_SECONDS
        self.verdict = HealthVerdict()
        self.rises = {
            bound.rule.name: Rise(bound.rule.window_seconds)
            for bound in plan
            if bound.rule.looks_at.startswith(RISE)
        }

    def count(self, sample: GPUMetrics) -> bool:
        """Take the counters; True where one stepped back: the device or its driver was reset."""
        reset = False
        for bound in self.plan:
            rise = self.rises.get(bound.rule.name)
            value = getattr(sample, bound.rule.looks_at.removeprefix(RISE)) if rise else None
            if rise is not None and value is not None:
                reset |= rise.add(value, self.now)
        joules, before = sample.energy_joules, self.energy_joules
        if joules is not None:
            reset |= before is not None and joules < before
            self.energy_joules = joules
        return reset

    def evaluate(self) -> None:
        """Bring every condition up to date."""
        for bound in self.plan:
            value = bound.look(self)
            if value is not None:
                self._step(bound, value)

    def _step(self, bound: Bound, value: float) -> None:
        name, rule = bound.rule.name, bound.rule
        condition = self.conditions.get(name)
        if condition is None or not condition.holds:
            if value <= bound.above:
                self.conditions.pop(name, None)
                return
            if condition is None:
                condition = self.conditions[name] = _Condition(self.now)
            if self.now - condition.pending_at >= rule.hold_seconds:
                condition.holds = True
                condition.reason = bound.said(self)
        elif value > bound.until:
            condition.clearing_at = None
            if rule.looks_at.startswith(FAULT):
                condition.reason = bound.said(self)
        else:
            if condition.clearing_at is None:
                condition.clearing_at = self.now
            if self.now - condition.clearing_at >= rule.clear_seconds:
                del self.conditions[name]

    def judge(self) -> tuple[Health, tuple[str, ...]]:
        """The worst that holds, and all reasons."""
        held = ((bound, self.conditions.get(bound.rule.name)) for bound in self.plan)
        return worst([(bound.health, one.reason) for bound, one in held if one and one.holds])
