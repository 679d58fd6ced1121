"""A model in GGUF: what its header says, and what becomes of a header that lies."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from pathlib import Path

import make_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.models.reading import read_model
from exo.gpu.vocabulary.errors import ModelError

DATA = Path(__file__).parents[1] / "data"


def write(folder, metadata, tensors, name="model.gguf", **options):
    path = folder / name
    path.write_bytes(make_models.gguf(metadata, tensors, **options))
    return path


def test_the_models_of_the_tests_are_what_their_maker_writes():
    """Rule: the files that are kept can be made anew, byte for byte."""
    for name, content in make_models.files().items():
        assert (DATA / name).read_bytes() == content


def test_bytes_are_counted_by_layer_and_type(tmp_path):
    """Rule: weights by tensor, cache by heads and lengths, embedding and output beside the layers."""
    model = read_model(DATA / "tiny.gguf")
    # Q4_0 has 18 bytes for 32 numbers; keys and values have 16 numbers each, of 2 bytes.
    matrices = (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) * 18 // 32
    assert [layer.weight_bytes for layer in model.layers] == [matrices + 2 * 32 * 4] * 4
    assert model.layers[0].parameters == 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 64
    assert model.layers[0].cache_bytes_per_token == 2 * 16 * 2
    assert model.embedding_bytes == 32 * 64 * 34 // 32
    assert model.output_bytes == 32 * 64 * 34 // 32 + 32 * 4
    assert (model.name, model.architecture, model.context_tokens) == ("Tiny", "llama", 32768)
    assert model.activation_bytes_per_token == 32 * 4
    whole = (DATA / "tiny.gguf").stat().st_size
    assert model.weight_bytes <= whole


def test_weights_are_never_read(tmp_path):
    """Rule: a header alone is enough."""
    alone = write(tmp_path, *make_models.llama_gguf(), weights=False)
    assert read_model(alone) == read_model(DATA / "tiny.gguf")


def test_an_output_that_is_the_embedding_counts_where_both_are_once(tmp_path):
    """Rule: without an output of its own the embedding is read again, and is tied."""
    metadata, tensors = make_models.llama_gguf()
    del tensors["output.weight"]
    model = read_model(write(tmp_path, metadata, tensors))
    assert model.tied_bytes == model.embedding_bytes == 32 * 64 * 34 // 32
    assert model.output_bytes == model.embedding_bytes + 32 * 4


def test_experts_are_told_apart(tmp_path):
    """Rule: routed experts are a part of the weights; shared ones are read for every token."""
    metadata, tensors = make_models.llama_gguf(
        layers=1, **{"llama.expert_count": 8, "llama.expert_used_count": 2}
    )
    tensors["blk.0.ffn_up_exps.weight"] = ((32, 64, 8), make_models.Q8_0)
    tensors["blk.0.ffn_up_shexp.weight"] = ((32, 64), make_models.Q8_0)
    model = read_model(write(tmp_path, metadata, tensors))
    assert model.layers[0].expert_bytes == 32 * 64 * 8 * 34 // 32
    assert model.layers[0].expert_parameters == 32 * 64 * 8
    assert (model.experts, model.experts_used) == (8, 2)


def test_layers_that_do_not_attend_keep_nothing(tmp_path):
    """Rule: heads may differ by layer, and a layer without keys has no cache."""
    metadata, tensors = make_models.llama_gguf(
        layers=3, **{"llama.attention.head_count_kv": [2, 1, 2]}
    )
    for part in ("q", "k", "v", "output"):
        del tensors[f"blk.2.attn_{part}.weight"]
    layers = read_model(write(tmp_path, metadata, tensors)).layers
    assert [one.cache_bytes_per_token for one in layers] == [64, 32, 0]


def test_a_window_counts_where_its_pattern_is_told(tmp_path):
    """Rule: a window without a pattern counts with the whole context, and that is said."""
    windows = {"llama.attention.sliding_window": 100}
    known = {**windows, "llama.attention.sliding_window_pattern": [True, False, True, False]}
    told = read_model(write(tmp_path, *make_models.llama_gguf(**known)))
    assert [one.cached_tokens for one in told.layers] == [100, None, 100, None]
    assert told.layers[0].cache_bytes(1000) == 100 * 64
    untold = read_model(write(tmp_path, *make_models.llama_gguf(**windows)))
    assert {one.cached_tokens for one in untold.layers} == {None}
    assert "100 tokens" in untold.notes[0]


def test_latent_attention_keeps_the_latent_vector(tmp_path):
    """Rule: a cache of latent attention has its rank and the rotary part, not all heads."""
    metadata, tensors = make_models.llama_gguf(
        **{
            "llama.attention.kv_lora_rank": 16,
            "llama.attention.key_length_mla": 8,
            "llama.rope.dimension_count": 4,
        }
    )
    model = read_model(write(tmp_path, metadata, tensors))
    assert model.layers[0].cache_bytes_per_token == (16 + 4) * 2


def shards(folder, count=3):
    """A model in so many files, a layer in each."""
    metadata, tensors = make_models.llama_gguf(layers=count)
    paths = []
    for number in range(count):
        own = {
            name: one
            for name, one in tensors.items()
            if name.startswith(f"blk.{number}.") or (number == 0 and not name.startswith("blk."))
        }
        head = metadata if number == 0 else {"general.architecture": "llama"}
        head = {**head, "split.no": number, "split.count": count}
        name = f"model-{number + 1:05d}-of-{count:05d}.gguf"
        paths.append(write(folder, head, own, name, weights=False))
    return paths


def test_shards_are_one_model_whichever_is_named(tmp_path):
    """Rule: any shard stands for all of them, and their folder too."""
    paths = shards(tmp_path)
    whole = read_model(tmp_path)
    assert len(whole.layers) == 3
    assert all(read_model(path).layers == whole.layers for path in paths)


def test_missing_shards_are_named(tmp_path):
    """Rule: what is not there is said, and no plan is made from the rest."""
    paths = shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.gguf"):
        read_model(paths[0])
    paths[2].rename(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match="one of 3 shards"):
        read_model(tmp_path / "other.gguf")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_truncated_header_is_an_error_of_ours(tmp_path_factory, data):
    """Rule: wherever the file ends within its header, the error names the file."""
    head = make_models.gguf(*make_models.llama_gguf(layers=1), weights=False)
    end = len(head.rstrip(b"\0"))
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(head[: data.draw(st.integers(1, end - 20))])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        read_model(path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_header_is_an_error_of_ours_or_a_model(tmp_path_factory, data):
    """Rule: any byte may be anything: a ModelError, never another exception."""
    head = bytearray(make_models.gguf(*make_models.llama_gguf(layers=1), weights=False))
    for place in data.draw(st.lists(st.integers(4, len(head) - 1), min_size=1, max_size=8)):
        head[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("odd") / "odd.gguf"
    path.write_bytes(head)
    with contextlib.suppress(ModelError):
        assert read_model(path).layers


def head_of(tensors=0, pairs=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


ARRAY = struct.pack("<IIQ", 9, 4, 2**63)
WORDS = struct.pack("<IIQ", 9, 8, 2**63)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (head_of(tensors=2**63), "claims 9223372036854775808 tensors"),
        (head_of(pairs=2**63), "claims 9223372036854775808 values"),
        (head_of(pairs=1) + struct.pack("<Q", 2**63) + bytes(64), "and 65536 are allowed"),
        (head_of(pairs=1) + make_models.text("a.key") + ARRAY + bytes(64), "truncated"),
        (head_of(pairs=1) + make_models.text("a.key") + WORDS + bytes(64), "truncated"),
        (head_of(pairs=1) + make_models.text("a.key") + struct.pack("<I", 77), "type 77"),
        (head_of(version=1) + bytes(64), "GGUF 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order"),
        (head_of(), "no layers"),
        (b"GGUF", "truncated"),
        (
            head_of(tensors=1)
            + make_models.text("x")
            + struct.pack("<I4QIQ", 4, *[2**62] * 4, 0, 0),
            "claims",
        ),
        (head_of(tensors=1) + make_models.text("x") + struct.pack("<IQIQ", 1, 1, 99, 0), "type 99"),
        (
            head_of(tensors=1)
            + make_models.text("blk.999999999.x")
            + struct.pack("<IQIQ", 1, 1, 0, 0),
            "beyond",
        ),
        (b"", "empty"),
        (b"neither this nor that", "no model that is known"),
    ],
)
def test_claims_that_cannot_be_are_refused(tmp_path, content, said):
    """Rule: a count is held against the file's size before anything is done with it."""
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_model(path)


LIMITED = """
import resource, sys
from exo.gpu.models.reading import read_model
from exo.gpu.vocabulary.errors import ModelError
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
try:
    read_model(sys.argv[1])
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["words.gguf", "pairs.gguf", "odd.safetensors"])
def test_memory_is_bounded(tmp_path, name):
    """Rule: with 256 MiB of address space, a hostile header of a sparse terabyte is refused."""
    path = tmp_path / name
    heads = {
        "words.gguf": head_of(pairs=1)
        + make_models.text("a.key")
        + struct.pack("<IIQ", 9, 8, 1)
        + struct.pack("<Q", 2**41),
        "pairs.gguf": head_of(tensors=2**40),
        "odd.safetensors": struct.pack("<Q", 2**39),
    }
    with path.open("wb") as file:
        file.write(heads[name])
        file.truncate(2**40)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


def test_zero_layers_and_gaps_are_refused(tmp_path):
    """Rule: a model has layers, and all of those that it claims."""
    metadata, tensors = make_models.llama_gguf()
    beside = {name: one for name, one in tensors.items() if not name.startswith("blk.")}
    with pytest.raises(ModelError, match="no layers"):
        read_model(write(tmp_path, metadata, beside))
    gap = {name: one for name, one in tensors.items() if not name.startswith("blk.1.")}
    with pytest.raises(ModelError, match="no tensor of layer 1 of 4"):
        read_model(write(tmp_path, metadata, gap))
    many = {**metadata, "llama.block_count": 10**6}
    with pytest.raises(ModelError, match="4096 are allowed"):
        read_model(write(tmp_path, many, tensors))


def test_what_is_no_file_is_said(tmp_path):
    """Rule: a missing path, an empty folder, a folder with two models and a pipe are told apart."""
    with pytest.raises(ModelError, match="No such file"):
        read_model(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="has no model"):
        read_model(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path, *make_models.llama_gguf(), name)
    with pytest.raises(ModelError, match="name one of them"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match="no regular file"):
        read_model("/dev/zero")
