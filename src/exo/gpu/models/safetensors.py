"""Safetensors: a length, a JSON object of that length, and weights that nobody reads here.

The ``safetensors`` package opens complete files only; a header is JSON, which msgspec reads.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from exo.gpu.models.gathering import Gathered
from exo.gpu.models.header_file import HeaderFile
from exo.gpu.models.tensor_types import SAFETENSORS_BITS
from exo.gpu.vocabulary.errors import ModelError

LONGEST_HEADER_BYTES = 100_000_000
"""What the format's own library allows."""

_LAYER = re.compile(r"(?:(.*)\.)?(layers|h|blocks|block|layer)\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"(?:^|\.)experts\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight\Z"
)
_LAST = re.compile(
    r"(?:^|\.)(lm_head|embed_out|output|norm|ln_f|final_layernorm|final_layer_norm)\."
)
_OUTPUT = re.compile(r"(?:^|\.)(lm_head|embed_out|output)\.")
_KEYS_OR_VALUES = re.compile(r"(?:^|\.)(k_proj|v_proj)\.(weight|scales)\Z")
_ATTENTION = re.compile(
    r"(?:^|\.)(k_proj|qkv_proj|query_key_value|c_attn|Wqkv|kv_a_proj_with_mqa|kv_b_proj)\."
)
_LATENT = re.compile(r"(?:^|\.)kv_a_proj_with_mqa\.weight\Z")
_MOST_STACKS = 64
_MOST_MODULES = 1000


class _Tensor(msgspec.Struct):
    """One entry of a header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Stacks:
    """The stacks of layers of a model by the module that holds them, and what is in none."""

    def __init__(self, source: str, packed: int = 1) -> None:
        self.source = source
        self.packed = packed
        """How many parameters a whole number of 8 bits and more stands for: of quantised ones."""
        self.stacks: dict[str, Gathered] = {}
        self.beside = Gathered(source)
        self.first: dict[str, None] = {}
        self.last: dict[str, None] = {}

    def count(self, name: str, tensor: _Tensor) -> None:
        """Count one tensor."""
        size = tensor.data_offsets[1] - tensor.data_offsets[0]
        numbers = 1
        for length in tensor.shape:
            numbers *= length
        if self.packed > 1 and tensor.dtype in {"I32", "U8", "I8"}:
            numbers *= self.packed if tensor.dtype == "I32" else max(1, self.packed // 4)
        self.beside.tensors += 1
        match = _LAYER.match(name)
        if match is not None:
            self._in_layer(match, tensor, size, numbers)
        elif _LAST.search(name):
            self._module(self.last, name)
            self.beside.last_bytes += size
            self.beside.last_parameters += numbers
            self.beside.has_output |= _OUTPUT.search(name) is not None
        else:
            self._module(self.first, name)
            self.beside.first_bytes += size
            if _EMBEDDING.search(name):
                self.beside.embedding_bytes += size
                self.beside.embedding_parameters += numbers
                self.beside.embedding_width = tensor.shape[-1] if tensor.shape else 0

    def _module(self, into: dict[str, None], name: str) -> None:
        if len(into) < _MOST_MODULES:
            into[name.rpartition(".")[0] or name] = None

    def _in_layer(self, match: re.Match[str], tensor: _Tensor, size: int, numbers: int) -> None:
        before, word, number, part = match.groups()
        module = f"{before}.{word}" if before else word
        if module not in self.stacks and len(self.stacks) >= _MOST_STACKS:
            raise ModelError(f"{self.source} has more than {_MOST_STACKS} stacks of layers")
        stack = self.stacks.setdefault(module, Gathered(self.source))
        stack.tensors += 1
        layer = stack.layer(int(number))
        layer.add(size, numbers, expert=_EXPERT.search(part) is not None)
        if _ATTENTION.search(part):
            layer.attends = True
        if len(tensor.shape) > 1:
            if _KEYS_OR_VALUES.search(part):
                # A matrix has a row for each number that comes out, a quantised one's scales a
                # column.
                layer.cache_width += tensor.shape[1 if part.endswith("scales") else 0]
            elif _LATENT.search(part):
                layer.cache_width = tensor.shape[0]

    def main(self) -> tuple[str, Gathered]:
        """The stack with the most bytes: the language model; the others come before it.

        Raises:
            ModelError: where there is none.

        """
        if not self.stacks:
            count = self.beside.tensors
            raise ModelError(f"{self.source} has no layers: {count} tensors, none in one")
        sizes = {
            module: sum(layer.weight_bytes for layer in stack.layers.values())
            for module, stack in self.stacks.items()
        }
        main = max(sizes, key=sizes.__getitem__)
        for module, size in sizes.items():
            if module != main:
                self.beside.first_bytes += size
                self.first[module] = None
        return main, self.stacks[main]


def read_safetensors(path: Path, into: Stacks) -> None:
    """Add the tensors of one file to the sums.

    Raises:
        ModelError: for what is no safetensors, a truncated header, or claims beyond the file.

    """
    with HeaderFile(path) as file:
        length = int.from_bytes(file.take(8, "the length of the header"), "little")
        if length > LONGEST_HEADER_BYTES:
            raise ModelError(
                f"{path}: the header claims {length} bytes, and the format allows "
                f"{LONGEST_HEADER_BYTES}"
            )
        text = file.take(length, "the header")
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            into.count(name, _checked(path, name, msgspec.json.decode(entry, type=_Tensor)))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the header is no safetensors header: {error}") from error


def _checked(path: Path, name: str, tensor: _Tensor) -> _Tensor:
    begin, end = tensor.data_offsets
    bits = SAFETENSORS_BITS.get(tensor.dtype)
    numbers = 1
    for length in tensor.shape:
        if length < 0:
            raise ModelError(f"{path}: {name} has the shape {tensor.shape}")
        numbers *= length
    if not 0 <= begin <= end < 2**62 or numbers >= 2**62:
        raise ModelError(f"{path}: {name} claims bytes {begin} to {end}")
    if bits is not None and numbers * bits != 8 * (end - begin):
        raise ModelError(
            f"{path}: {name} has {numbers} numbers of {tensor.dtype}, and {end - begin} bytes"
        )
    return tensor
