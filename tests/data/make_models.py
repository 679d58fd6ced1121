"""Writes the tiny models beside it: valid files, whose weights are zeros.

``python tests/data/make_models.py`` writes them anew; a test compares what is here with that.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
ALIGNMENT = 32
# Number of the type in GGUF, numbers in a block, bytes of a block.
F32, F16, Q4_0, Q8_0 = (0, 1, 4), (1, 1, 2), (2, 32, 18), (8, 32, 34)
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "F8_E4M3": 1}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(content: object) -> bytes:
    """A value with its type, as GGUF has it."""
    if isinstance(content, bool):
        return struct.pack("<I?", 7, content)
    if isinstance(content, int):
        return struct.pack("<II", 4, content)
    if isinstance(content, float):
        return struct.pack("<If", 6, content)
    if isinstance(content, str):
        return struct.pack("<I", 8) + text(content)
    assert isinstance(content, list)
    kind = 7 if isinstance(content[0], bool) else 8 if isinstance(content[0], str) else 4
    head = struct.pack("<IIQ", 9, kind, len(content))
    if kind == 8:
        return head + b"".join(text(one) for one in content)
    return head + b"".join(struct.pack("<?" if kind == 7 else "<I", one) for one in content)


def gguf(metadata: dict, tensors: dict, *, weights: bool = True, version: int = 3) -> bytes:
    """A GGUF file; ``tensors`` has a shape and a type by name."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    offset, described = 0, b""
    for name, (shape, (kind, block, size)) in tensors.items():
        described += text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset
        )
        numbers = 1
        for length in shape:
            numbers *= length
        offset += -(-(numbers // block * size) // ALIGNMENT) * ALIGNMENT
    whole = head + described
    whole += bytes(-len(whole) % ALIGNMENT)
    return whole + bytes(offset if weights else 0)


def safetensors(tensors: dict, *, weights: bool = True) -> bytes:
    """A safetensors file; ``tensors`` has a shape and a type by name."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, kind) in tensors.items():
        size = BYTES[kind]
        for length in shape:
            size *= length
        header[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + bytes(offset if weights else 0)


def llama_gguf(layers: int = 4, width: int = 32, heads: int = 4, shared: int = 2, **more) -> tuple:
    """Metadata and tensors of a small Llama in GGUF."""
    metadata = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.block_count": layers,
        "llama.context_length": 32768,
        "llama.embedding_length": width,
        "llama.feed_forward_length": 2 * width,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": shared,
        "tokenizer.ggml.tokens": [f"word {number}" for number in range(64)],
        "general.alignment": ALIGNMENT,
        **more,
    }
    keys = width * shared // heads
    tensors = {"token_embd.weight": ((width, 64), Q8_0)}
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ((width,), F32),
            f"blk.{layer}.attn_q.weight": ((width, width), Q4_0),
            f"blk.{layer}.attn_k.weight": ((width, keys), Q4_0),
            f"blk.{layer}.attn_v.weight": ((width, keys), Q4_0),
            f"blk.{layer}.attn_output.weight": ((width, width), Q4_0),
            f"blk.{layer}.ffn_norm.weight": ((width,), F32),
            f"blk.{layer}.ffn_gate.weight": ((width, 2 * width), Q4_0),
            f"blk.{layer}.ffn_up.weight": ((width, 2 * width), Q4_0),
            f"blk.{layer}.ffn_down.weight": ((2 * width, width), Q4_0),
        }
    tensors |= {"output_norm.weight": ((width,), F32), "output.weight": ((width, 64), Q8_0)}
    return metadata, tensors


def llama_safetensors(layers: int = 4, width: int = 16) -> dict:
    """Tensors of a small Llama as transformers names them, its output tied to its embedding."""
    tensors = {"model.embed_tokens.weight": ((64, width), "BF16")}
    for layer in range(layers):
        before = f"model.layers.{layer}"
        tensors |= {
            f"{before}.input_layernorm.weight": ((width,), "BF16"),
            f"{before}.self_attn.q_proj.weight": ((width, width), "BF16"),
            f"{before}.self_attn.k_proj.weight": ((width // 2, width), "BF16"),
            f"{before}.self_attn.v_proj.weight": ((width // 2, width), "BF16"),
            f"{before}.self_attn.o_proj.weight": ((width, width), "BF16"),
            f"{before}.post_attention_layernorm.weight": ((width,), "BF16"),
            f"{before}.mlp.gate_proj.weight": ((2 * width, width), "BF16"),
            f"{before}.mlp.up_proj.weight": ((2 * width, width), "BF16"),
            f"{before}.mlp.down_proj.weight": ((width, 2 * width), "BF16"),
        }
    return tensors | {"model.norm.weight": ((width,), "BF16")}


def files() -> dict[str, bytes]:
    """The files by name."""
    return {
        "tiny.gguf": gguf(*llama_gguf()),
        "tiny.safetensors": safetensors(llama_safetensors()),
    }


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / name).write_bytes(content)
        print(name, len(content))
