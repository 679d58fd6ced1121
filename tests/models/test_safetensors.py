"""A model in safetensors: its headers, its index, and its configuration where there is one."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import make_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.models.reading import read_model
from exo.gpu.vocabulary.errors import ModelError

DATA = Path(__file__).parents[1] / "data"


def write(folder, tensors, name="model.safetensors", configuration=None, **options):
    path = folder / name
    path.write_bytes(make_models.safetensors(tensors, **options))
    if configuration is not None:
        (folder / "config.json").write_text(json.dumps(configuration))
    return path


def test_layers_and_modules_follow_from_the_tensors():
    """Rule: bytes by layer, the cache by the shapes of keys and values, the modules by name."""
    model = read_model(DATA / "tiny.safetensors")
    numbers = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 32 * 16 + 2 * 16
    assert [one.weight_bytes for one in model.layers] == [numbers * 2] * 4
    assert {one.cache_bytes_per_token for one in model.layers} == {(8 + 8) * 2}
    assert model.embedding_bytes == model.tied_bytes == 64 * 16 * 2
    assert model.output_bytes == 64 * 16 * 2 + 16 * 2
    assert model.layer_module == "model.layers"
    assert model.first_modules == ("model.embed_tokens",)
    assert model.last_modules == ("model.norm", "lm_head")
    assert model.activation_bytes_per_token == 16 * 2
    assert "no config.json" in model.notes[0]


def test_the_configuration_adds_what_tensors_do_not_tell(tmp_path):
    """Rule: context, experts and windows come from config.json."""
    tensors = make_models.llama_safetensors(layers=2)
    tensors["model.layers.1.mlp.experts.0.up_proj.weight"] = ((32, 16), "BF16")
    configuration = {
        "architectures": ["TinyForCausalLM"],
        "max_position_embeddings": 1000,
        "hidden_size": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    model = read_model(write(tmp_path, tensors, configuration=configuration))
    assert (model.architecture, model.context_tokens) == ("TinyForCausalLM", 1000)
    assert (model.experts, model.experts_used) == (4, 2)
    assert [one.cached_tokens for one in model.layers] == [128, None]
    assert model.layers[1].expert_bytes == 32 * 16 * 2


def test_fused_and_latent_attention(tmp_path):
    """Rule: where keys and values are not tensors of their own, heads or the latent rank tell."""
    tensors = make_models.llama_safetensors(layers=1)
    for part in "qkv":
        del tensors[f"model.layers.0.self_attn.{part}_proj.weight"]
    tensors["model.layers.0.self_attn.qkv_proj.weight"] = ((32, 16), "BF16")
    heads = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    fused = read_model(write(tmp_path, tensors, configuration=heads))
    assert fused.layers[0].cache_bytes_per_token == 2 * 2 * 4 * 2
    latent = {**heads, "kv_lora_rank": 10, "qk_rope_head_dim": 6}
    assert (
        read_model(write(tmp_path, tensors, configuration=latent)).layers[0].cache_bytes_per_token
        == (10 + 6) * 2
    )


def test_quantised_numbers_count_as_parameters(tmp_path):
    """Rule: eight weights of 4 bits stand in 32, and the bytes are those of the file."""
    tensors = make_models.llama_safetensors(layers=1)
    tensors["model.layers.0.mlp.up_proj.qweight"] = ((2, 32), "I32")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    plain = read_model(DATA / "tiny.safetensors").layers[0]
    packed = read_model(
        write(tmp_path, tensors, configuration={"quantization_config": {"bits": 4}})
    ).layers[0]
    assert packed.parameters == plain.parameters
    assert packed.weight_bytes == plain.weight_bytes - 32 * 16 * 2 + 2 * 32 * 4


def test_a_tower_beside_the_language_model_comes_first(tmp_path):
    """Rule: the stack with the most bytes is split, others stand before the first layer."""
    tensors = make_models.llama_safetensors()
    tensors["vision_tower.encoder.layers.0.fc1.weight"] = ((10, 10), "F32")
    model = read_model(write(tmp_path, tensors))
    assert len(model.layers) == 4
    assert model.embedding_bytes == 64 * 16 * 2 + 400
    assert "vision_tower.encoder.layers" in model.first_modules


def sharded(folder, index=True):
    """The model in two files, with their index."""
    tensors = make_models.llama_safetensors()
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    halves = [{}, {}]
    for name, one in tensors.items():
        halves[".layers.2." in name or ".layers.3." in name][name] = one
    for name, half in zip(names, halves, strict=True):
        write(folder, half, name, weights=False)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    return [folder / name for name in names]


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_model_whichever_is_named(tmp_path, index):
    """Rule: a shard, the index and the folder stand for all; without an index the names tell."""
    paths = sharded(tmp_path, index=index)
    whole = read_model(DATA / "tiny.safetensors")
    places = [*paths, tmp_path]
    places += [tmp_path / "model.safetensors.index.json"] if index else []
    for place in places:
        assert read_model(place).layers == whole.layers


def test_missing_shards_and_odd_names_are_refused(tmp_path):
    """Rule: what is not there is named, and an index leads nowhere but beside itself."""
    paths = sharded(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors"):
        read_model(paths[0])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ModelError, match="no file beside it"):
        read_model(index)
    index.write_text("{")
    with pytest.raises(ModelError, match=r"index\.json"):
        read_model(index)


def raw(header, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape, begin, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (raw({}, 2**63), "claims 9223372036854775808 bytes"),
        (raw({}, 10**6), "truncated"),
        (b"1234", "truncated"),
        (raw(b"{nothing"), "no safetensors header"),
        (raw({"a": entry([2**62, 2], 0, 4)}), "claims bytes"),
        (raw({"a": entry([-1], 0, 4)}), "shape"),
        (raw({"a": entry([2], 0, 4)}), "has 2 numbers of F32, and 4 bytes"),
        (raw({"a": entry([1], 8, 4)}), "claims bytes 8 to 4"),
        (raw({"layers.99999.a": entry([1], 0, 4)}), "beyond"),
        (raw({"a": entry([1], 0, 4)}), "no layers"),
        (raw({"layers.0.a": entry([1], 0, 4), "layers.2.a": entry([1], 4, 8)}), "layer 1 of 3"),
        (raw({f"m{n}.layers.0.a": entry([1], 0, 4) for n in range(65)}), "more than 64 stacks"),
    ],
)
def test_claims_that_cannot_be_are_refused(tmp_path, content, said):
    """Rule: a length is held against the format's limit and the file before it is believed."""
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_model(path)


def test_fewer_layers_than_the_configuration_has_are_refused(tmp_path):
    """Rule: half a model is none."""
    tensors = make_models.llama_safetensors(layers=2)
    path = write(tmp_path, tensors, configuration={"num_hidden_layers": 4})
    with pytest.raises(ModelError, match="2 of 4 layers"):
        read_model(path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_header_is_an_error_of_ours_or_a_model(tmp_path_factory, data):
    """Rule: any byte may be anything: a ModelError, never another exception."""
    head = bytearray(make_models.safetensors(make_models.llama_safetensors(1), weights=False))
    for place in data.draw(st.lists(st.integers(8, len(head) - 1), min_size=1, max_size=8)):
        head[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    path.write_bytes(head)
    with contextlib.suppress(ModelError):
        assert read_model(path).layers


class TestDescriptions:
    def test_equal_layers_take_one_line(self, tmp_path):
        """Rule: a description repeats layers, and the rest has its usual names."""
        path = tmp_path / "mine.json"
        layers = [{"count": 3, "weight_bytes": 100, "cache_bytes_per_token": 2}]
        layers.append({"weight_bytes": 50, "expert_bytes": 20})
        path.write_text(json.dumps({"layers": layers, "output_bytes": 7}))
        model = read_model(path)
        assert [one.weight_bytes for one in model.layers] == [100, 100, 100, 50]
        assert (model.name, model.output_bytes) == ("mine", 7)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('{"layers": []}', "at least one layer"),
            ('{"layers": [{"weight_bytes": -1}]}', "weight_bytes"),
            ('{"layers": [{"weight_bytes": 1, "count": 5000}]}', "4096 are allowed"),
            ('{"layers": [{"weight_bytes": 1, "count": -1}]}', "are allowed"),
            ('{"layers": [{"weight_bytes": 1, "expert_bytes": 2}]}', "expert_bytes"),
            ('{"layers": [{"weight_byte": 1}]}', "weight_byte"),
            ('{"layers": [{"weight_bytes": 1}], "embeding_bytes": 1}', "did you mean"),
            ('{"layers": [{"weight_bytes": 1}], "experts_used": 1}', "experts_used"),
            ('{"layers": [{"weight_bytes": 1}], "tied_bytes": 1}', "tied_bytes"),
            ('{"layers": [{"weight_bytes": 9000000000000000000}]}', "weight_bytes"),
            ('{"name": "x"}', "layers"),
            ("{", "mine.json"),
        ],
    )
    def test_what_cannot_be_is_refused(self, tmp_path, text, said):
        """Rule: an unknown field or a value that cannot be names the file and itself."""
        path = tmp_path / "mine.json"
        path.write_text(text)
        with pytest.raises(ModelError, match=said):
            read_model(path)
