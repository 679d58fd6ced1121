"""GGUF: the header alone, pair by pair and tensor by tensor, with nothing kept but sums.

The ``gguf`` package maps the whole file and keeps an array for each word of the vocabulary; this
reads a header of any length in the memory of one tensor's description.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.models.gathering import Gathered, LayerSum
from exo.gpu.models.header_file import HeaderFile
from exo.gpu.models.tensor_types import GGML_TYPES
from exo.gpu.vocabulary.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_LONGEST_NAME = 2**16
"""GGUF allows a key so many bytes; a tensor's name has 64."""
_LONGEST_TEXT = 2**10
_LONGEST_LIST = 4096
_MOST_DIMENSIONS = 8
_SMALLEST_PAIR, _SMALLEST_TENSOR = 13, 24
"""Bytes of a pair (a key, a type, a byte), of a tensor's description."""

_WANTED = re.compile(
    r"general\.(architecture|name)\Z|split\.(count|no)\Z|[^.]+\.(block_count|context_length"
    r"|embedding_length|expert_count|expert_used_count|rope\.dimension_count"
    r"|attention\.(head_count|head_count_kv|key_length|value_length|key_length_mla"
    r"|sliding_window|sliding_window_pattern|kv_lora_rank))\Z"
)
_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"ffn_(gate|up|down|gate_up)_exps\b")
_ATTENTION = re.compile(r"attn_(k|qkv|kv_a_mqa|k_b|kv_b)\b")


def read_gguf(path: Path, into: Gathered) -> dict[str, Any]:
    """Add the tensors of one file to the sums; the metadata that say what a model needs.

    Raises:
        ModelError: for what is no GGUF, a truncated header, or claims beyond the file.

    """
    with HeaderFile(path) as file:
        tensors, pairs = _head(file)
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = _text(file, "the name of a value", _LONGEST_NAME)
            wanted = _WANTED.match(key) is not None
            value = _value(file, key, keep=wanted)
            if wanted and value is not None:
                metadata[key] = value
        for _ in range(tensors):
            _tensor(file, into)
    return metadata


def _head(file: HeaderFile) -> tuple[int, int]:
    """How many tensors and how many pairs there are."""
    if file.take(4, "the word GGUF") != MAGIC:
        raise ModelError(f"{file.path} is no GGUF file")
    (version,) = struct.unpack("<I", file.take(4, "the version"))
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        what = "in the byte order of other machines" if swapped in _VERSIONS else f"GGUF {version}"
        raise ModelError(f"{file.path} is {what}; versions 2 and 3, little-endian, are read")
    tensors, pairs = struct.unpack("<QQ", file.take(16, "the counts"))
    for count, least, what in (
        (tensors, _SMALLEST_TENSOR, "tensors"),
        (pairs, _SMALLEST_PAIR, "values"),
    ):
        if count > file.left // least:
            raise ModelError(
                f"{file.path}: the header claims {count} {what}, and there is room "
                f"for {file.left // least} at most"
            )
    return tensors, pairs


def _text(file: HeaderFile, what: str, longest: int) -> str:
    (length,) = struct.unpack("<Q", file.take(8, what))
    if length > longest:
        raise ModelError(f"{file.path}: {what} claims {length} bytes, and {longest} are allowed")
    return file.take(length, what).decode("utf-8", "replace")


def _value(file: HeaderFile, key: str, *, keep: bool) -> Any:
    """One value where it is to be kept, else None; the file stands behind it."""
    (kind,) = struct.unpack("<I", file.take(4, f"the type of {key}"))
    if kind in _SCALARS:
        form = f"<{_SCALARS[kind]}"
        (value,) = struct.unpack(form, file.take(struct.calcsize(form), key))
        return value if keep else None
    if kind == _STRING:
        (length,) = struct.unpack("<Q", file.take(8, key))
        if not keep or length > _LONGEST_TEXT:
            file.skip(length, key)
            return None
        return file.take(length, key).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(file, key, keep=keep)
    raise ModelError(f"{file.path}: {key} has type {kind}, which GGUF does not know")


def _array(file: HeaderFile, key: str, *, keep: bool) -> list[Any] | None:
    kind, count = struct.unpack("<IQ", file.take(12, key))
    if kind in _SCALARS:
        form = f"<{_SCALARS[kind]}"
        size = struct.calcsize(form)
        if not keep or count > _LONGEST_LIST:
            file.skip(count * size, key)
            return None
        return [value for (value,) in struct.iter_unpack(form, file.take(count * size, key))]
    if kind != _STRING:
        raise ModelError(f"{file.path}: {key} is a list of type {kind}, which no model has")
    if count > file.left // 8:
        raise file.truncated(f"{key}, a list of {count} words,", 8 * count)
    length_of: Callable[[bytes], tuple[int]] = struct.Struct("<Q").unpack
    for _ in range(count):
        (length,) = length_of(file.take(8, key))
        file.skip(length, key)
    return None


def _tensor(file: HeaderFile, into: Gathered) -> None:
    """Count one tensor by the layer that its name tells."""
    name = _text(file, "the name of a tensor", _LONGEST_NAME)
    (dimensions,) = struct.unpack("<I", file.take(4, name))
    if dimensions > _MOST_DIMENSIONS:
        raise ModelError(f"{file.path}: {name} claims {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", file.take(8 * dimensions, name))
    kind, _offset = struct.unpack("<IQ", file.take(12, name))
    if kind not in GGML_TYPES:
        raise ModelError(f"{file.path}: {name} has type {kind}, whose size is not known here")
    numbers = 1
    for length in shape:
        numbers *= length
    if numbers >= 2**60:
        raise ModelError(f"{file.path}: {name} claims {numbers} numbers")
    _, block, block_bytes = GGML_TYPES[kind]
    _count(into, name, shape, numbers, -(-numbers // block) * block_bytes)


def _count(
    into: Gathered, name: str, shape: tuple[int, ...], numbers: int, size_bytes: int
) -> None:
    into.tensors += 1
    match = _BLOCK.match(name)
    if match is not None:
        layer = into.layer(int(match[1]))
        layer.add(size_bytes, numbers, expert=_EXPERT.match(match[2]) is not None)
        _note_attention(layer, match[2], shape)
    elif name.startswith("output"):
        into.last_bytes += size_bytes
        into.last_parameters += numbers
        into.has_output |= name == "output.weight"
    else:
        into.first_bytes += size_bytes
        if name == "token_embd.weight":
            into.embedding_bytes += size_bytes
            into.embedding_parameters += numbers


def _note_attention(layer: LayerSum, part: str, shape: tuple[int, ...]) -> None:
    """Whether the layer keeps keys and values, and how wide, where its own tensors tell."""
    if _ATTENTION.match(part) is None:
        return
    layer.attends = True
    if part in {"attn_k.weight", "attn_v.weight"} and len(shape) > 1:
        layer.cache_width += shape[1]
