"""gpu.plan_split: a model's headers and this machine's devices, as they are now, to a plan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

import msgspec

from exo.gpu.coordination.split_devices import SplitWishes, offered_devices
from exo.gpu.models.reading import read_model
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.model import ModelNeeds
from exo.gpu.vocabulary.split import SplitDevice, SplitLink, SplitPlan
from exo.gpu.vocabulary.split_network import NetworkPlan, SplitNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.nodes.transport import Node

DEFAULT_CONTEXT_TOKENS = 4096
"""Of a model that was made for as much."""


@overload
def plan_split(
    model: str | os.PathLike[str] | ModelNeeds | None,
    devices: SplitNetwork,
    *,
    goal: str = "throughput",
) -> NetworkPlan: ...


@overload
def plan_split(
    model: str | os.PathLike[str] | ModelNeeds,
    devices: Sequence[SplitDevice] | Sequence[str] | None = None,
    *,
    goal: str = "latency",
    context: int | None = None,
    batch: int = 1,
    links: Sequence[SplitLink] = (),
    runtime: str | None = None,
    runtimes: frozenset[str] | None = None,
    one_runtime: bool = False,
    all_devices: bool = False,
    use_host: bool = False,
    reserve: str | int = 0,
    buffer: str | int | None = None,
    bandwidths: Mapping[str, float] | None = None,
    node: Node | None = None,
) -> SplitPlan: ...


def plan_split(
    model: str | os.PathLike[str] | ModelNeeds | None,
    devices: Sequence[SplitDevice] | Sequence[str] | SplitNetwork | None = None,
    *,
    goal: str = "latency",
    context: int | None = None,
    batch: int = 1,
    links: Sequence[SplitLink] = (),
    **wishes: Any,
) -> SplitPlan | NetworkPlan:
    """Which layers of a model go where, on this machine's devices or on those that are given.

    ``model`` is the path of a GGUF or safetensors file, of an index or a folder of shards, or of a
    JSON description; only headers are read. ``devices`` are ids of this machine's devices,
    :class:`~exo.gpu.vocabulary.split.SplitDevice` values, or a network of nodes, where the layers
    are placed for the largest flow. ``context`` is in tokens of each of ``batch`` sequences.

    Raises:
        ModelError: for a model whose header cannot be used.
        InvalidValue: for a device without a bandwidth, or a context beyond the model's.
        NeverAvailable: for the name of a device that is not here.

    """
    from exo.gpu.scheduling.split import split_layers

    if isinstance(devices, SplitNetwork):
        from exo.gpu.scheduling.split_placement import place_layers

        return place_layers(devices)
    if model is None:
        raise InvalidValue("model", model, "a path or a ModelNeeds")
    if devices is not None and not devices:
        raise InvalidValue("devices", list(devices), "at least one device")
    needs = model if isinstance(model, ModelNeeds) else read_model(model)
    tokens = context_of(needs, context)
    given = [one for one in devices or () if isinstance(one, SplitDevice)]
    if given and len(given) == len(devices or ()):
        return split_layers(
            needs, given, goal=goal, context_tokens=tokens, batch=batch, links=links
        )
    names = tuple(one for one in devices or () if isinstance(one, str))
    if len(names) != len(devices or ()):
        raise InvalidValue("devices", devices, "ids, or SplitDevice values, not both")
    offer = offered_devices(SplitWishes(devices=names, **wishes))
    plan = split_layers(
        needs,
        offer.devices,
        goal=goal,
        context_tokens=tokens,
        batch=batch,
        links=(*links, *offer.links),
        host=offer.host,
    )
    return msgspec.structs.replace(plan, left_out=(*plan.left_out, *offer.left_out))


def context_of(model: ModelNeeds, context: int | None) -> int:
    """The context that counts: what is asked for, else 4096 or what the model was made for.

    Raises:
        InvalidValue: for more than the model was made for.

    """
    most = model.context_tokens
    if context is None:
        return min(DEFAULT_CONTEXT_TOKENS, most or DEFAULT_CONTEXT_TOKENS)
    if isinstance(context, int) and most is not None and context > most:
        raise InvalidValue(
            "context", context, f"at most {most} tokens, for which {model.name} was made"
        )
    return context
