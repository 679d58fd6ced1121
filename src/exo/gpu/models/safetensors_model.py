"""A model in safetensors files: the sums of its shards, and what its configuration adds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from exo.gpu.models.gathering import Gathered, LayerSum, as_layer
from exo.gpu.models.safetensors import Stacks, read_safetensors
from exo.gpu.vocabulary.errors import ModelError
from exo.gpu.vocabulary.model import ModelNeeds

if TYPE_CHECKING:
    from collections.abc import Iterable

INDEX_SUFFIX = ".safetensors.index.json"
ACTIVATION_BYTES_PER_NUMBER = 2
"""Engines that read safetensors hand activations on in 16 bits."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors\Z")
_LONGEST_JSON_BYTES = 2**26
_MOST_SHARDS = 10_000


class _Index(msgspec.Struct):
    """``model.safetensors.index.json``: the file of each tensor."""

    weight_map: dict[str, str]


def safetensors_model(path: Path) -> ModelNeeds:
    """What a model in one file, in the shards of an index, or of which this is one, needs.

    Raises:
        ModelError: for a header that cannot be, a missing shard, or a model without layers.

    """
    shards = _shards(path)
    configuration = _configuration(path)
    stacks = Stacks(str(path), _packed(configuration))
    for shard in shards:
        read_safetensors(shard, stacks)
    module, stack = stacks.main()
    facts = _Facts(configuration)
    sums = stack.in_order(None)
    expected = facts.whole("num_hidden_layers")
    if expected is not None and expected > len(sums):
        raise ModelError(f"{path} has {len(sums)} of {expected} layers: is a shard missing?")
    beside, experts = stacks.beside, facts.experts()
    width = facts.whole("hidden_size", "n_embd", "d_model") or beside.embedding_width or None
    return ModelNeeds(
        name=path.resolve().parent.name if path.name.startswith("model") else path.stem,
        layers=tuple(
            as_layer(facts.with_cache(one, width), facts.window(number))
            for number, one in enumerate(sums)
        ),
        embedding_bytes=beside.first_bytes,
        output_bytes=beside.output_bytes,
        tied_bytes=beside.tied_bytes,
        output_parameters=beside.output_parameters,
        activation_bytes_per_token=(width or 0) * ACTIVATION_BYTES_PER_NUMBER,
        experts=experts[0],
        experts_used=experts[1],
        context_tokens=facts.whole("max_position_embeddings", "n_positions") or None,
        architecture=facts.architecture,
        form="safetensors",
        layer_module=module,
        first_modules=tuple(stacks.first),
        last_modules=(*stacks.last, *_tied_head(module, beside)),
        notes=tuple(_assumed(facts, sums, width)),
    )


def _tied_head(module: str, beside: Gathered) -> Iterable[str]:
    """The output's module where it has no tensor of its own, as transformers names it."""
    if not beside.has_output and beside.embedding_bytes and module.startswith("model."):
        yield "lm_head"


def _shards(path: Path) -> list[Path]:
    """All files of the model.

    Raises:
        ModelError: naming those that are not there.

    """
    match = _SHARD.match(path.name)
    if path.name.endswith(INDEX_SUFFIX):
        index = path
    elif match is not None and path.with_name(f"{match[1]}{INDEX_SUFFIX}").exists():
        index = path.with_name(f"{match[1]}{INDEX_SUFFIX}")
    else:
        index = None
    if index is not None:
        names = sorted(set(_read_json(index, _Index).weight_map.values()))
        odd = [name for name in names if Path(name).name != name or name in {"", ".", ".."}]
        if odd:
            raise ModelError(f"{index} names {odd[0]!r}, which is no file beside it")
    elif match is not None:
        count = int(match[3])
        if not 1 <= count <= _MOST_SHARDS:
            raise ModelError(f"{path} is named as one of {count} shards")
        names = [
            f"{match[1]}-{number:05d}-of-{match[3]}.safetensors" for number in range(1, count + 1)
        ]
    else:
        return [path]
    missing = [name for name in names if not path.with_name(name).exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(f"{path} lacks of its {len(names)} shards {', '.join(missing[:3])}{more}")
    return [path.with_name(name) for name in names]


def _read_json(path: Path, kind: type[Any]) -> Any:
    try:
        if path.stat().st_size > _LONGEST_JSON_BYTES:
            raise ModelError(f"{path} has more than {_LONGEST_JSON_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}") from error


def _configuration(path: Path) -> dict[str, Any]:
    """``config.json`` beside the model; empty where there is none."""
    beside = path.with_name("config.json")
    return _read_json(beside, dict[str, Any]) if beside.is_file() else {}


def _packed(configuration: dict[str, Any]) -> int:
    """How many parameters stand in 32 bits of a quantised tensor; 1 for one that is not."""
    quantised: Any = configuration.get("quantization_config")
    bits: Any = cast("dict[str, Any]", quantised).get("bits") if isinstance(quantised, dict) else 0
    return 32 // bits if isinstance(bits, int) and 0 < bits <= 16 else 1


class _Facts:
    """The configuration, or its part for the language model."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        names: Any = configuration.get("architectures")
        listed = cast("list[Any]", names) if isinstance(names, list) else []
        self.architecture = str(listed[0]) if listed else ""
        inner: Any = configuration.get("text_config")
        outer = {key: value for key, value in configuration.items() if key != "text_config"}
        self._values: dict[str, Any] = {**outer, **inner} if isinstance(inner, dict) else outer
        self.known = bool(configuration)

    def whole(self, *names: str) -> int | None:
        """The first of these that is a whole number."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
        return None

    def experts(self) -> tuple[int, int]:
        """How many there are, and how many of them a token uses."""
        count = self.whole("num_local_experts", "n_routed_experts", "num_experts") or 0
        used = self.whole("num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0
        return count, min(count, used)

    def with_cache(self, total: LayerSum, width: int | None) -> LayerSum:
        """The layer with the width of its cache: by its own tensors, else by the heads."""
        latent = self.whole("kv_lora_rank")
        if latent:
            total.cache_width = latent + (self.whole("qk_rope_head_dim") or 0)
        elif total.attends and not total.cache_width:
            heads = self.whole("num_attention_heads", "n_head")
            length = self.whole("head_dim") or (width // heads if width and heads else None)
            shared = self.whole("num_key_value_heads", "num_kv_heads") or heads
            # Without a configuration each head keeps its own, which is the most there can be.
            total.cache_width = 2 * (shared * length if shared and length else width or 0)
        return total

    def window(self, number: int) -> int | None:
        """The window of a layer where the types of layers are told."""
        kinds: Any = self._values.get("layer_types")
        if isinstance(kinds, list) and number < len(cast("list[Any]", kinds)):
            return self.whole("sliding_window") if kinds[number] == "sliding_attention" else None
        return None


def _assumed(facts: _Facts, sums: list[LayerSum], width: int | None) -> Iterable[str]:
    """What the files left open, in words."""
    if not facts.known:
        yield "there is no config.json beside it: its cache follows from the shapes of its tensors"
    if any(one.expert_bytes for one in sums) and facts.experts() == (0, 0):
        yield "how many experts a token uses is not told: all count"
    if width is None:
        yield "how wide an activation is is not told: links count with their latency alone"
