"""A model in GGUF files: the sums of its shards, and its cache by its metadata."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exo.gpu.models.gathering import Gathered, as_layer
from exo.gpu.models.gguf import read_gguf
from exo.gpu.vocabulary.errors import ModelError
from exo.gpu.vocabulary.model import ModelNeeds

if TYPE_CHECKING:
    from exo.gpu.models.gathering import LayerSum

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf\Z")
_MOST_SHARDS = 10_000
ACTIVATION_BYTES_PER_NUMBER = 4
"""llama.cpp hands activations on in 32 bits."""


def gguf_model(path: Path) -> ModelNeeds:
    """What a model in one file, or in the shards of which this is one, needs.

    Raises:
        ModelError: for a header that cannot be, a missing shard, or a model without layers.

    """
    into = Gathered(str(path))
    metadata: dict[str, Any] = {}
    for shard in _shards(path):
        metadata = {**read_gguf(shard, into), **metadata}
    count = _whole(metadata, "split.count")
    if _SHARD.match(path.name) is None and count and count > 1:
        raise ModelError(f"{path} is one of {count} shards, and its name does not tell which")
    facts = _Facts(metadata)
    sums = into.in_order(facts.whole("block_count"))
    window = facts.whole("attention.sliding_window")
    notes = list(_assumed(facts, window))
    width = facts.whole("embedding_length")
    return ModelNeeds(
        name=str(metadata.get("general.name") or path.stem),
        layers=tuple(
            as_layer(facts.with_cache(number, one), facts.window(number, window))
            for number, one in enumerate(sums)
        ),
        embedding_bytes=into.first_bytes,
        output_bytes=into.output_bytes,
        tied_bytes=into.tied_bytes,
        output_parameters=into.output_parameters,
        activation_bytes_per_token=(width or 0) * ACTIVATION_BYTES_PER_NUMBER,
        experts=facts.whole("expert_count") or 0,
        experts_used=min(facts.whole("expert_used_count") or 0, facts.whole("expert_count") or 0),
        context_tokens=facts.whole("context_length") or None,
        architecture=facts.architecture,
        form="gguf",
        notes=tuple(notes),
    )


def _shards(path: Path) -> list[Path]:
    """All files of the model, in order.

    Raises:
        ModelError: naming those that are not there.

    """
    match = _SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    if not 1 <= count <= _MOST_SHARDS:
        raise ModelError(f"{path} is named as one of {count} shards")
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1)]
    shards = [path.with_name(name) for name in names]
    missing = [one.name for one in shards if not one.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{path} lacks of its {count} shards {', '.join(missing[:3])}{more}")
    return shards


def _whole(metadata: dict[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


class _Facts:
    """The metadata of the model's architecture."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.architecture = str(metadata.get("general.architecture", ""))
        self._metadata = metadata

    def whole(self, name: str) -> int | None:
        """A whole number; None where there is none, or one for each layer."""
        return _whole(self._metadata, f"{self.architecture}.{name}")

    def _list(self, name: str) -> list[Any] | None:
        value: Any = self._metadata.get(f"{self.architecture}.{name}")
        return cast("list[Any]", value) if isinstance(value, list) else None

    def of_layer(self, name: str, number: int) -> int | None:
        """The same where it is a list with a place for each layer."""
        value = self._list(name)
        if value is not None:
            one = value[number] if number < len(value) else None
            return one if isinstance(one, int) and one >= 0 else None
        return self.whole(name)

    def with_cache(self, number: int, total: LayerSum) -> LayerSum:
        """The layer with the width of its cache: by its heads, else by its own tensors."""
        if not total.attends:
            total.cache_width = 0
            return total
        latent = self.whole("attention.kv_lora_rank")
        if latent and self.whole("attention.key_length_mla"):
            # The latent vector and the rotary part of the key are all that is kept.
            total.cache_width = latent + (self.whole("rope.dimension_count") or 0)
            return total
        heads = self.of_layer("attention.head_count", number)
        shared = self.of_layer("attention.head_count_kv", number)
        width = self.whole("embedding_length")
        length = width // heads if width and heads else None
        keys = self.whole("attention.key_length") or length
        values = self.whole("attention.value_length") or length
        shared = heads if shared is None else shared
        if shared is not None and keys and values:
            total.cache_width = shared * (keys + values)
        return total

    def window(self, number: int, window: int | None) -> int | None:
        """The window of a layer where the pattern tells that it has one."""
        pattern = self._list("attention.sliding_window_pattern")
        if not window or pattern is None or number >= len(pattern):
            return None
        return window if pattern[number] is True else None


def _assumed(facts: _Facts, window: int | None) -> list[str]:
    """What the metadata left open, in words."""
    notes: list[str] = []
    if window and facts.window(0, window) is None and facts.window(1, window) is None:
        notes.append(
            f"which layers keep only {window} tokens is not told: all count with the whole context"
        )
    if facts.whole("embedding_length") is None:
        notes.append("how wide an activation is is not told: links count with their latency alone")
    return notes
