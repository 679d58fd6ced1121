"""Which layers go where: the split of one model over unlike devices that suits a goal best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from exo.gpu.scheduling.split_advice import shortage_of
from exo.gpu.scheduling.split_bounds import least_longest_seconds, least_total_seconds
from exo.gpu.scheduling.split_costs import Costs
from exo.gpu.scheduling.split_orders import best_by_exchange
from exo.gpu.scheduling.split_result import assumptions_of, plan_of
from exo.gpu.scheduling.split_search import Found, Problem, best_of_all
from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue, UnknownName
from exo.gpu.vocabulary.split import ASSUMED_LINKS, SplitGoal, SplitPlan
from exo.gpu.vocabulary.units import check_whole

if TYPE_CHECKING:
    from exo.gpu.vocabulary.model import ModelNeeds
    from exo.gpu.vocabulary.split import SplitDevice, SplitLink

MOST_DEVICES = 512
_MOST_TOKENS = 2**40
_SAME = 1e-9


class Question(msgspec.Struct, frozen=True):
    """What is asked: a model, devices and their links, a context and a batch."""

    model: ModelNeeds
    devices: tuple[SplitDevice, ...]
    links: tuple[SplitLink, ...]
    context_tokens: int
    batch: int
    in_each: bool = False
    """Whether a batch is in each device at once, as for throughput."""

    def costs(self, batches: int = 1, devices: Sequence[int] | None = None) -> Costs:
        """The tables with so many batches under way, over all devices or those numbers."""
        chosen = self.devices if devices is None else [self.devices[one] for one in devices]
        return Costs(
            self.model,
            chosen,
            self.links,
            context_tokens=self.context_tokens,
            batch=self.batch,
            batches=batches,
        )


def split_layers(
    model: ModelNeeds,
    devices: Sequence[SplitDevice],
    *,
    goal: SplitGoal | str = SplitGoal.LATENCY,
    context_tokens: int = 4096,
    batch: int = 1,
    links: Sequence[SplitLink] = (),
    host: SplitDevice | None = None,
) -> SplitPlan:
    """The best split; a plan without shares where the model does not fit, with what would.

    For latency it makes the least sum of the times of all stages and hops, for throughput the least
    longest one, and among those the least sum; then a batch is in each stage at once, and every
    device keeps the cache of all of them. ``host`` is where layers could go if they do not fit.
    Where no link is given between two devices, one is assumed, and the plan says so.

    Raises:
        InvalidValue: for no devices, one twice, an unknown goal, a context or batch below 1.

    """
    goal = _checked(goal, context_tokens, batch, devices)
    ways = (*links, *ASSUMED_LINKS)
    in_each = goal is SplitGoal.THROUGHPUT
    question = Question(model, tuple(devices), ways, context_tokens, batch, in_each)
    costs, found, gap = (_least_longest if in_each else _least_sum)(question)
    assumed = assumptions_of(model, devices, links)
    if found is None:
        shortage = shortage_of(question, host)
        return SplitPlan(
            model=model.name,
            goal=goal,
            context_tokens=context_tokens,
            batch=batch,
            layer_count=len(model.layers),
            assumptions=assumed,
            shortage=shortage,
            devices=tuple(devices),
        )
    return plan_of(costs, found, goal, context_tokens=context_tokens, gap=gap, assumed=assumed)


def _checked(
    goal: SplitGoal | str, context_tokens: int, batch: int, devices: Sequence[SplitDevice]
) -> SplitGoal:
    """The goal, where everything that was asked can be."""
    if goal not in tuple(SplitGoal):
        raise UnknownName("goal", goal, [one.value for one in SplitGoal])
    for field, value in (("context_tokens", context_tokens), ("batch", batch)):
        check_whole(field, value, low=1)
        if value > _MOST_TOKENS:
            raise InvalidValue(field, value, f"at most {_MOST_TOKENS}")
    _check(devices)
    return SplitGoal(goal)


def _check(devices: Sequence[SplitDevice]) -> None:
    if not devices:
        raise InvalidValue("devices", [], "at least one device")
    if len(devices) > MOST_DEVICES:
        raise InvalidValue("devices", len(devices), f"at most {MOST_DEVICES} devices")
    seen: set[str] = set()
    for device in devices:
        if device.device_id in seen:
            raise DuplicateDevice("devices", device.device_id, "named once only")
        seen.add(device.device_id)


def _least_sum(question: Question) -> tuple[Costs, Found | None, float]:
    """The split with the least sum, and how far it is from the bound."""
    costs = question.costs()
    problem = Problem(costs, longest=False)
    if problem.exact:
        return costs, best_of_all(problem, len(question.devices)), 0.0
    found = best_by_exchange(problem, len(question.devices))
    return costs, found, _gap(found, least_total_seconds(costs))


def _gap(found: Found | None, bound: float) -> float:
    return 0.0 if found is None or bound <= 0 else max(0.0, found.seconds / bound - 1.0)


def _least_longest(question: Question) -> tuple[Costs, Found | None, float]:
    """The split with the least longest stage, and among those the least sum.

    With more devices more batches are under way, each with its cache, so that every number of
    devices is a problem of its own; those that cannot be better by their bound are left out.
    """
    seconds, batches, exact = np.inf, 0, True
    for count in range(1, len(question.devices) + 1):
        costs = question.costs(count)
        if not _may_improve(costs, count, seconds):
            continue
        problem = Problem(costs, longest=True)
        exact = exact and problem.exact
        found = _solve(problem, count)
        if found is not None and found.seconds < seconds * (1 - _SAME):
            seconds, batches = found.seconds, count
    if not batches:
        return question.costs(), None, 0.0
    costs = question.costs(batches)
    found = _solve(Problem(costs, longest=False, ceiling=seconds), batches)
    if found is None:  # an exchange may find the longest stage again, and no sum under it
        found = _solve(Problem(costs, longest=True), batches)
    assert found is not None
    costs = question.costs(len(found.ranges))
    if exact:
        return costs, found, 0.0
    bound = least_longest_seconds(question.costs())
    return costs, found, _gap(Found(seconds, found.ranges), bound)


def _solve(problem: Problem, most_devices: int) -> Found | None:
    if problem.exact:
        return best_of_all(problem, most_devices)
    return best_by_exchange(problem, most_devices)


def _may_improve(costs: Costs, batches: int, seconds: float) -> bool:
    """Whether so many devices have room, and the fastest could take all of it in less time."""
    room = sorted((device.usable_bytes for device in costs.devices), reverse=True)
    if float(costs.needed[0, -1]) > sum(room[:batches]):
        return False
    speeds = sorted((device.bandwidth_gbps for device in costs.devices), reverse=True)
    return float(costs.work.read_bytes.sum()) < seconds * sum(speeds[:batches]) * 1e9
