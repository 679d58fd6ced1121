"""Tensors added up by layer as they are read: a header of any length takes little memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from exo.gpu.vocabulary.errors import ModelError
from exo.gpu.vocabulary.model import MOST_LAYERS, ModelLayer

CACHE_BYTES_PER_NUMBER = 2
"""Keys and values are kept in 16 bits unless an engine is told otherwise."""


@dataclass
class LayerSum:
    """What was seen of one layer. ``cache_width`` is how many numbers it keeps for each token."""

    weight_bytes: int = 0
    expert_bytes: int = 0
    parameters: int = 0
    expert_parameters: int = 0
    cache_width: int = 0
    attends: bool = False

    def add(self, size_bytes: int, parameters: int, *, expert: bool) -> None:
        """Count one tensor."""
        self.weight_bytes += size_bytes
        self.parameters += parameters
        if expert:
            self.expert_bytes += size_bytes
            self.expert_parameters += parameters


@dataclass
class Gathered:
    """Sums by layer, and beside the first and the last of them."""

    source: str
    layers: dict[int, LayerSum] = field(default_factory=dict[int, LayerSum])
    embedding_bytes: int = 0
    embedding_parameters: int = 0
    embedding_width: int = 0
    first_bytes: int = 0
    last_bytes: int = 0
    last_parameters: int = 0
    has_output: bool = False
    tensors: int = 0

    def layer(self, number: int) -> LayerSum:
        """The sum of a layer.

        Raises:
            ModelError: for a number beyond any model's.

        """
        if number >= MOST_LAYERS:
            raise ModelError(f"{self.source}: layer {number} is beyond the {MOST_LAYERS} allowed")
        return self.layers.setdefault(number, LayerSum())

    def in_order(self, expected: int | None) -> list[LayerSum]:
        """The layers from 0 on.

        Raises:
            ModelError: for no layers, or one without a tensor between others.

        """
        count = expected if expected is not None else max(self.layers, default=-1) + 1
        if count <= 0 or not self.layers:
            raise ModelError(f"{self.source} has no layers: {self.tensors} tensors, none in one")
        if count > MOST_LAYERS:
            raise ModelError(f"{self.source} claims {count} layers, and {MOST_LAYERS} are allowed")
        missing = [number for number in range(count) if number not in self.layers]
        if missing:
            raise ModelError(
                f"{self.source} has no tensor of layer {missing[0]} of {count}: is a shard missing?"
            )
        return [self.layers[number] for number in range(count)]

    @property
    def output_bytes(self) -> int:
        """What the last layer's device reads after it: the embedding again where that is tied."""
        return self.last_bytes + self.tied_bytes

    @property
    def output_parameters(self) -> int:
        """How many numbers that is."""
        return self.last_parameters + (0 if self.has_output else self.embedding_parameters)

    @property
    def tied_bytes(self) -> int:
        """Of the output, what is the embedding's."""
        return 0 if self.has_output else self.embedding_bytes


def as_layer(total: LayerSum, cached_tokens: int | None = None) -> ModelLayer:
    """One layer as it is split."""
    return ModelLayer(
        weight_bytes=total.weight_bytes,
        expert_bytes=total.expert_bytes,
        parameters=total.parameters,
        expert_parameters=total.expert_parameters,
        cache_bytes_per_token=total.cache_width * CACHE_BYTES_PER_NUMBER,
        cached_tokens=cached_tokens,
    )
