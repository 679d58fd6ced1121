"""From ranges to a plan: bytes and seconds of each share, what is foretold, and the bottleneck."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exo.gpu.scheduling.split_costs import PREFILL_CHUNK_TOKENS, work_of
from exo.gpu.vocabulary.split import DeviceShare, LeftOut, SplitGoal, SplitPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exo.gpu.scheduling.split_costs import Costs
    from exo.gpu.scheduling.split_search import Found
    from exo.gpu.vocabulary.model import ModelNeeds
    from exo.gpu.vocabulary.split import SplitDevice, SplitLink


class _Hop(NamedTuple):
    """The way between two stages: all of its time, and the part that grows with the bytes."""

    name: str
    seconds: float
    moving_seconds: float

    @classmethod
    def between(cls, costs: Costs, source: int, target: int) -> _Hop:
        name = f"{costs.devices[source].device_id} -> {costs.devices[target].device_id}"
        return cls(name, float(costs.hops[source, target]), float(costs.transfers[source, target]))


def plan_of(
    costs: Costs,
    found: Found,
    goal: SplitGoal,
    *,
    context_tokens: int,
    gap: float,
    assumed: tuple[str, ...],
) -> SplitPlan:
    """The plan that ranges make."""
    shares = _shares(costs, found)
    hops = [_Hop.between(costs, one[0], other[0]) for one, other in pairwise(found.ranges)]
    waits = goal is SplitGoal.LATENCY
    timed = {share.device_id: share.decode_seconds for share in shares}
    step = sum(timed.values()) + sum(hop.seconds for hop in hops)
    timed |= {hop.name: hop.seconds if waits else hop.moving_seconds for hop in hops}
    longest = max(timed.values())
    return SplitPlan(
        model=costs.model.name,
        goal=goal,
        context_tokens=context_tokens,
        batch=costs.batch,
        layer_count=costs.layer_count,
        shares=shares,
        left_out=tuple(_left_out(costs, found, goal)),
        decode_tokens_per_second=costs.batch / (step if waits else longest),
        sequence_tokens_per_second=1.0 / (step if waits else max(step, longest * len(shares))),
        prefill_tokens_per_second=_prefill_rate(shares, hops, costs, waits=waits),
        bottleneck=max(timed, key=timed.__getitem__),
        optimal=gap == 0.0,
        gap=gap,
        assumptions=assumed,
        devices=tuple(costs.devices),
    )


def _shares(costs: Costs, found: Found) -> tuple[DeviceShare, ...]:
    model = costs.model
    prefill = work_of(model, PREFILL_CHUNK_TOKENS, np.zeros(len(model.layers)))
    shares: list[DeviceShare] = []
    for place, (number, begin, end) in enumerate(found.ranges):
        device = costs.devices[number]
        cache = int(costs.cache_bytes[begin:end].sum())
        each = None if device.compute_gflops is None else prefill.seconds(device)
        last = end == costs.layer_count
        later = found.ranges[place + 1][0] if place + 1 < len(found.ranges) else None
        shares.append(
            DeviceShare(
                device_id=device.device_id,
                first_layer=begin,
                end_layer=end,
                weight_bytes=int(costs.needed[begin, end]) - cache,
                cache_bytes=cache,
                usable_bytes=device.usable_bytes,
                decode_seconds=float(costs.seconds[number][begin, end]),
                prefill_seconds=None
                if each is None
                else float(each[begin:end].sum() + (each[-1] if last else 0.0)),
                hop_seconds=0.0 if later is None else float(costs.hops[number, later]),
                host=device.host,
            )
        )
    return tuple(shares)


def _prefill_rate(
    shares: Sequence[DeviceShare],
    hops: Sequence[_Hop],
    costs: Costs,
    *,
    waits: bool,
) -> float | None:
    """Tokens a second of prompts; None where the compute of a device is not known."""
    chunk = PREFILL_CHUNK_TOKENS
    seconds = [share.prefill_seconds for share in shares if share.prefill_seconds is not None]
    if len(seconds) < len(shares) or any(one.parameters is None for one in costs.model.layers):
        return None
    # A chunk moves so many times what a step of the batch does.
    moving = [hop.moving_seconds * chunk / costs.batch for hop in hops]
    waiting = [hop.seconds - hop.moving_seconds for hop in hops]
    total = sum(seconds) + sum(moving) + sum(waiting) if waits else max([*seconds, *moving])
    return chunk / total if total > 0 else None


def _left_out(costs: Costs, found: Found, goal: SplitGoal) -> Iterator[LeftOut]:
    used = {number for number, _, _ in found.ranges}
    smallest = float((costs.weight_bytes + costs.cache_bytes).min())
    for number, device in enumerate(costs.devices):
        if number in used:
            continue
        if device.usable_bytes < smallest:
            reason = "not even the smallest layer fits on it"
        elif goal is SplitGoal.LATENCY:
            reason = "the others have room for all, and it would make each token slower"
        else:
            reason = "with it, no device would have to do less than the longest stage takes"
        yield LeftOut(device_id=device.device_id, reason=reason)


def assumptions_of(
    model: ModelNeeds, devices: Sequence[SplitDevice], links: Sequence[SplitLink]
) -> tuple[str, ...]:
    """What the plan rests on that was not measured, each with what it is about."""
    said = [f"{model.name}: {note}" for note in model.notes]
    for device in devices:
        said += [f"{device.device_id}: {one}" for one in device.assumptions]
    joined = all(
        any(link.joins(one, other) for link in links)
        for one in devices
        for other in devices
        if one is not other
    )
    if not joined:
        said.append(
            "links that were not measured: 12 GB/s and 20 us within a machine, "
            "0.125 GB/s and 1 ms between machines"
        )
    return tuple(said)
