"""A model that does not fit: how much is missing, and what would fit instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from exo.gpu.scheduling.split_costs import Costs
from exo.gpu.scheduling.split_orders import best_by_exchange
from exo.gpu.scheduling.split_search import Problem, best_of_all
from exo.gpu.vocabulary.split import Shortage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.vocabulary.model import ModelNeeds
    from exo.gpu.vocabulary.split import SplitDevice, SplitLink

_CONTEXT_STEP_TOKENS = 256


class Asked(Protocol):
    """What was asked for."""

    @property
    def model(self) -> ModelNeeds:
        """The model."""
        ...

    @property
    def devices(self) -> tuple[SplitDevice, ...]:
        """The devices."""
        ...

    @property
    def links(self) -> tuple[SplitLink, ...]:
        """How they are joined."""
        ...

    @property
    def context_tokens(self) -> int:
        """The context of one sequence."""
        ...

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        ...

    @property
    def in_each(self) -> bool:
        """Whether a batch is in each device at once."""
        ...


def shortage_of(asked: Asked, host: SplitDevice | None) -> Shortage:
    """What is missing, and what would fit."""
    layers = _fewest_elsewhere(asked)
    missing, on_host = _bytes_of_first(asked, layers)
    room = None if host is None else host.usable_bytes
    empty = [
        msgspec.structs.replace(one, free_bytes=max(one.free_bytes, one.total_bytes or 0))
        for one in asked.devices
    ]
    helps = room is not None and on_host <= room
    return Shortage(
        missing_bytes=missing,
        largest_context_tokens=_largest_context(asked),
        layers_on_host=layers if helps else None,
        host_bytes=on_host if helps else None,
        fits_when_empty=_fits(
            asked, asked.model, empty, asked.context_tokens, in_each=asked.in_each
        ),
        fits_for_latency=asked.in_each
        and _fits(asked, asked.model, asked.devices, asked.context_tokens, in_each=False),
    )


def _fits(
    asked: Asked,
    model: ModelNeeds,
    devices: Sequence[SplitDevice],
    context_tokens: int,
    *,
    in_each: bool,
) -> bool:
    """Whether any split exists, where ``in_each`` with a batch in each of the devices it uses."""
    room = sorted((device.usable_bytes for device in devices), reverse=True)
    for batches in range(1, len(devices) + 1) if in_each else (1,):
        count = batches if in_each else len(devices)
        costs = Costs(
            model,
            devices,
            asked.links,
            context_tokens=context_tokens,
            batch=asked.batch,
            batches=batches,
        )
        if float(costs.needed[0, -1]) > sum(room[:count]):
            continue
        problem = Problem(costs, longest=False)
        find = best_of_all if problem.exact else best_by_exchange
        if find(problem, count) is not None:
            return True
    return False


def _without_first(model: ModelNeeds, count: int) -> ModelNeeds:
    """The model with its first layers, and what comes before them, elsewhere."""
    return msgspec.structs.replace(
        model, layers=model.layers[count:], embedding_bytes=0, tied_bytes=0
    )


def _fewest_elsewhere(asked: Asked) -> int:
    """The least number of first layers without which the rest fits; all of them at the most."""
    low, high = 0, len(asked.model.layers)
    while low < high:
        middle = (low + high) // 2
        rest = _without_first(asked.model, middle)
        if _fits(asked, rest, asked.devices, asked.context_tokens, in_each=asked.in_each):
            high = middle
        else:
            low = middle + 1
    return low


def _bytes_of_first(asked: Asked, count: int) -> tuple[int, int]:
    """What the devices lack at least, and what goes to the host, where so many layers go there."""
    layers = asked.model.layers[:count]
    taken = sum(
        one.weight_bytes + one.cache_bytes(asked.context_tokens) * asked.batch for one in layers
    )
    beside = asked.model.embedding_bytes
    if count == len(asked.model.layers):
        beside += asked.model.output_bytes - asked.model.tied_bytes
    return taken + (beside if not count or count == len(asked.model.layers) else 0), taken + beside


def _largest_context(asked: Asked) -> int | None:
    """The longest context that fits, in steps of 256 tokens; None where not even one token's."""
    low, high = 0, (asked.context_tokens - 1) // _CONTEXT_STEP_TOKENS
    if not _fits(asked, asked.model, asked.devices, 1, in_each=asked.in_each):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        tokens = middle * _CONTEXT_STEP_TOKENS
        if _fits(asked, asked.model, asked.devices, tokens, in_each=asked.in_each):
            low = middle
        else:
            high = middle - 1
    return max(1, low * _CONTEXT_STEP_TOKENS)
