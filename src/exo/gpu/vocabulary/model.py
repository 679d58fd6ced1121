"""What a model needs of devices, layer by layer: bytes, parameters, cache; never its weights."""

from __future__ import annotations

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_text, check_whole

MOST_LAYERS = 4096
"""Far above any model: what claims more is damaged."""

_MOST_BYTES = 2**62


class ModelLayer(WireValue, frozen=True, kw_only=True):
    """One layer: its weights, those of its routed experts within, and its cache.

    ``cache_bytes_per_token`` is what keys and values of one token take, at 16 bits each.
    """

    weight_bytes: int
    expert_bytes: int = 0
    """The part of ``weight_bytes`` of which each token uses some experts only."""
    parameters: int | None = None
    """How many numbers the weights hold, for the compute that they cost; None: not told."""
    expert_parameters: int = 0
    cache_bytes_per_token: int = 0
    cached_tokens: int | None = None
    """With a sliding window, the most tokens that are kept; None: all of the context."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("weight_bytes", "expert_bytes", "expert_parameters", "cache_bytes_per_token"):
            _check_amount(field, getattr(self, field))
        check_whole("parameters", self.parameters, optional=True)
        check_whole("cached_tokens", self.cached_tokens, low=1, optional=True)
        if self.expert_bytes > self.weight_bytes:
            expected = f"at most weight_bytes ({self.weight_bytes})"
            raise InvalidValue("expert_bytes", self.expert_bytes, expected)

    def cache_bytes(self, context_tokens: int) -> int:
        """Bytes of the cache of one sequence of this length."""
        kept = context_tokens if self.cached_tokens is None else self.cached_tokens
        return self.cache_bytes_per_token * min(context_tokens, kept)


class ModelNeeds(WireValue, frozen=True, kw_only=True):
    """A model as it is split: its layers, and what stands before the first and after the last.

    Raises:
        InvalidValue: for a model without layers, or a number that cannot be.

    """

    name: str
    layers: tuple[ModelLayer, ...]
    embedding_bytes: int = 0
    """Beside the first layer: the embedding, and whatever else comes before the layers."""
    output_bytes: int = 0
    """Beside the last layer: the last norm and the output, also where that is the embedding."""
    tied_bytes: int = 0
    """The part of ``output_bytes`` that a device with the embedding has already."""
    output_parameters: int | None = None
    activation_bytes_per_token: int = 0
    """What travels between two devices for each token; 0: not told."""
    experts: int = 0
    experts_used: int = 0
    """Of ``experts``, so many for each token; 0 where there are none."""
    context_tokens: int | None = None
    """The longest context that it was made for; None: not told."""
    architecture: str = ""
    form: str = "json"
    """Where this comes from: ``gguf``, ``safetensors`` or ``json``."""
    layer_module: str = ""
    """Safetensors: the module that holds the layers, such as ``model.layers``."""
    first_modules: tuple[str, ...] = ()
    last_modules: tuple[str, ...] = ()
    """Safetensors: the modules beside the first and the last layer."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, in words."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("name", self.name)
        if not self.layers:
            raise InvalidValue("layers", 0, "at least one layer")
        if len(self.layers) > MOST_LAYERS:
            raise InvalidValue("layers", len(self.layers), f"at most {MOST_LAYERS} layers")
        for field in ("embedding_bytes", "output_bytes", "tied_bytes"):
            _check_amount(field, getattr(self, field))
        for field in ("activation_bytes_per_token", "experts", "experts_used"):
            _check_amount(field, getattr(self, field))
        check_whole("output_parameters", self.output_parameters, optional=True)
        check_whole("context_tokens", self.context_tokens, low=1, optional=True)
        if self.experts_used > self.experts:
            expected = f"at most experts ({self.experts})"
            raise InvalidValue("experts_used", self.experts_used, expected)
        most = min(self.embedding_bytes, self.output_bytes)
        if self.tied_bytes > most:
            raise InvalidValue("tied_bytes", self.tied_bytes, f"at most {most}")

    @property
    def weight_bytes(self) -> int:
        """All weights, what is tied counted once."""
        beside = self.embedding_bytes + self.output_bytes - self.tied_bytes
        return sum(layer.weight_bytes for layer in self.layers) + beside


def _check_amount(field: str, value: int) -> None:
    check_whole(field, value)
    if value > _MOST_BYTES:
        raise InvalidValue(field, value, f"at most {_MOST_BYTES}")
