"""exo-gpu split: the plan for people, and settings that mean the same to each engine."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest

from exo.gpu.cli.split.engines import (
    CannotExpress,
    accelerate,
    accelerate_hint,
    exo,
    llama_cpp,
    vllm,
)
from exo.gpu.scheduling.split import split_layers
from exo.gpu.vocabulary.model import ModelLayer, ModelNeeds
from exo.gpu.vocabulary.split import SplitDevice

DATA = Path(__file__).parents[1] / "data"
GGUF, SAFETENSORS = str(DATA / "tiny.gguf"), str(DATA / "tiny.safetensors")
GIB = 2**30


def card(name, **fields):
    used = {"memory_used_bytes": 0, "memory_total_bytes": 24 * GIB}
    return {
        "device_id": name,
        "name": "A card",
        "vendor": "somebody",
        "backend": "fake",
        "runtime": name.partition(":")[0],
        "hardware_id": f"GPU-{name[-1] * 4}",
        "memory_bytes": 24 * GIB,
        "bandwidth_gbps": 500.0,
        "sample": used,
        **fields,
    }


HOST = card("cpu:0", device_class="host", hardware_id="cpu", bandwidth_gbps=20.0)


@pytest.fixture
def box(script):
    """Two cards of CUDA, one of ROCm, and the host."""
    return script(card("cuda:0"), card("cuda:1", bandwidth_gbps=300.0), card("rocm:2"), HOST)


@pytest.fixture
def big(tmp_path):
    """A description of 40 layers of 1 GiB, which need both cards of CUDA."""
    path = tmp_path / "big.json"
    layers = [{"count": 40, "weight_bytes": GIB, "cache_bytes_per_token": 4096}]
    path.write_text(
        json.dumps(
            {
                "name": "big",
                "layers": layers,
                "layer_module": "model.layers",
                "first_modules": ["model.embed_tokens"],
                "last_modules": ["lm_head"],
            }
        )
    )
    return str(path)


def test_the_plan_is_a_table_a_picture_and_its_reasons(box, big, exo_gpu):
    """Rule: who has what, one mark a layer, what is foretold, what is assumed; within 80 columns."""
    done = exo_gpu("split", big, "--on", "cuda")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "big: 40 layers for latency, 1 sequence of 4096 tokens"
    assert max(map(len, lines)) <= 80
    picture = next(line for line in lines if line.startswith("["))
    assert (picture.count("0"), picture.count("1")) == (18, 22) or (
        picture.count("1"),
        picture.count("0"),
    ) == (18, 22)
    assert "no other split of these devices is better" in done.stdout.replace("\n    ", " ")
    assert "left out: rocm:2: it belongs to runtime rocm, not cuda" in done.stdout
    assert "assumed: cuda:0, cuda:1: 1 GiB for the engine's context" in done.stdout


def test_json_is_the_plan(box, big, exo_gpu):
    """Rule: every figure, for programs."""
    plan = json.loads(exo_gpu("split", big, "--json").stdout)
    assert sum(one["end_layer"] - one["first_layer"] for one in plan["shares"]) == 40
    assert plan["optimal"] is True
    assert plan == json.loads(exo_gpu("split", big, "--format", "json").stdout)


def llama_layers(line, layers):
    """Where llama.cpp puts each layer and the output, as its load_tensors counts."""
    words = shlex.split(line)
    value = {one: words[place + 1] for place, one in enumerate(words) if one.startswith("-")}
    names = value["--device"].split(",")
    parts = [float(one) for one in value["-ts"].split(",")]
    borders = [one / sum(parts) for one in accumulate(parts)]
    on_gpu = int(value["-ngl"])
    start, active = max(layers + 1 - on_gpu, 0), min(on_gpu, layers + 1)
    return [
        "CPU" if layer < start else names[bisect_right(borders, (layer - start) / active)]
        for layer in range(layers + 1)
    ]


@pytest.mark.parametrize("counts", [(1, 1), (3, 37), (22, 18), (13, 14, 13), (1, 1, 1, 77)])
@pytest.mark.parametrize("host_layers", [0, 5])
def test_llama_cpp_puts_the_layers_where_the_plan_has_them(counts, host_layers):
    """Rule: -ts, -ngl and --device, read as llama.cpp reads them, give the plan's ranges."""
    layers = sum(counts) + host_layers
    needs = ModelNeeds(name="m", layers=(ModelLayer(weight_bytes=1000),) * layers)
    devices = [
        SplitDevice(
            device_id=f"cuda:{n}",
            runtime="cuda",
            free_bytes=1000 * count,
            bandwidth_gbps=1000.0 - n,
        )
        for n, count in enumerate(counts)
    ]
    if host_layers:
        devices.append(
            SplitDevice(
                device_id="cpu:0",
                runtime="cpu",
                free_bytes=host_layers * 1000,
                bandwidth_gbps=10.0,
                host=True,
            )
        )
    plan = split_layers(needs, devices)
    line = (
        llama_cpp(plan, needs, "m.gguf")
        .splitlines()[0]
        .removeprefix("CUDA_DEVICE_ORDER=PCI_BUS_ID ")
    )
    found = llama_layers(line, layers)
    for share in plan.shares:
        name = "CPU" if share.host else share.device_id.replace("cuda:", "CUDA")
        assert set(found[share.first_layer : share.end_layer]) == {name}
    assert found[-1] == found[-2]


def test_llama_cpp_in_full(box, exo_gpu):
    """Rule: a line for a shell, with the context of all sequences together."""
    done = exo_gpu("split", GGUF, "--on", "cuda", "--batch", "2", "--format", "llama.cpp")
    assert done.stdout == (
        f"CUDA_DEVICE_ORDER=PCI_BUS_ID llama-server -m {GGUF} --split-mode layer "
        "--device CUDA0 -ts 5 -ngl 5 -c 8192 -np 2\n"
    )
    refused = exo_gpu("split", SAFETENSORS, "--format", "llama.cpp")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "reads GGUF only" in refused.stderr


def test_vllm_takes_one_number_a_stage(box, big, exo_gpu):
    """Rule: counts that add up to all layers, as many as stages, and the cards in that order."""
    done = exo_gpu("split", big, "--on", "cuda", "--format", "vllm", "--goal", "throughput")
    words = shlex.split(done.stdout)
    variables = dict(one.split("=") for one in words[:2])
    counts = [int(one) for one in variables["VLLM_PP_LAYER_PARTITION"].split(",")]
    assert sum(counts) == 40
    assert words[2:5] == ["vllm", "serve", big]
    assert words[words.index("--pipeline-parallel-size") + 1] == "2"
    assert words[words.index("--max-num-seqs") + 1] == "2"
    plan = json.loads(
        exo_gpu("split", big, "--on", "cuda", "--json", "--goal", "throughput").stdout
    )
    order = [f"GPU-{one['device_id'][-1] * 4}" for one in plan["shares"]]
    assert variables["CUDA_VISIBLE_DEVICES"] == ",".join(order)
    assert counts == [one["end_layer"] - one["first_layer"] for one in plan["shares"]]


def test_an_engine_of_one_runtime_is_given_one(box, big, exo_gpu):
    """Rule: accelerate and vLLM get devices of one runtime, without being asked."""
    done = exo_gpu("split", big, "--format", "vllm")
    assert done.returncode == 0, done.stderr
    assert "CUDA_VISIBLE_DEVICES" in done.stdout
    host = exo_gpu("split", big, "--host", "--format", "vllm", "--on", "cuda")
    assert host.returncode == 0, host.stderr


def test_accelerate_maps_every_module_once(box, big, exo_gpu):
    """Rule: layers and what stands beside them, numbers in the order of the variable."""
    done = exo_gpu("split", big, "--on", "cuda", "--format", "accelerate")
    places = json.loads(done.stdout)
    assert len(places) == 42
    assert set(places.values()) == {0, 1}
    assert [places[f"model.layers.{n}"] for n in range(40)] == sorted(
        places[f"model.layers.{n}"] for n in range(40)
    )
    assert (places["model.embed_tokens"], places["lm_head"]) == (0, 1)
    assert "CUDA_VISIBLE_DEVICES=GPU-" in done.stderr
    tiny = exo_gpu("split", SAFETENSORS, "--goal", "throughput", "--format", "accelerate")
    assert json.loads(tiny.stdout)["model.layers.3"] in {0, 1}
    refused = exo_gpu("split", GGUF, "--format", "accelerate")
    assert refused.returncode == 1
    assert "names of modules" in refused.stderr


def test_exo_gets_a_shard_for_each_device(box, big, exo_gpu):
    """Rule: ranks, half-open ranges and all layers, a runner for each node."""
    found = json.loads(exo_gpu("split", big, "--on", "cuda", "--format", "exo").stdout)
    shards = [one["PipelineShardMetadata"] for one in found["runnerToShard"].values()]
    assert [one["deviceRank"] for one in shards] == [0, 1]
    assert shards[0]["startLayer"] == 0
    assert shards[0]["endLayer"] == shards[1]["startLayer"]
    assert shards[1]["endLayer"] == shards[1]["nLayers"] == 40
    assert set(found["nodeToRunner"].values()) == set(found["runnerToShard"])


def on_node(name, node, **fields):
    return SplitDevice(
        device_id=name, node=node, free_bytes=1500, bandwidth_gbps=9.0, runtime="cuda", **fields
    )


def test_what_an_engine_has_no_words_for_is_said():
    """Rule: devices of other machines, unknown runtimes, two shards for one node."""
    needs = ModelNeeds(name="m", layers=(ModelLayer(weight_bytes=1000),) * 2)
    remote = split_layers(needs, [on_node("rig/cuda:0", "rig"), on_node("rig/cuda:1", "rig")])
    with pytest.raises(CannotExpress, match="rpc-server"):
        llama_cpp(remote, needs, "m.gguf")
    with pytest.raises(CannotExpress, match="one shard"):
        exo(remote, needs, "m.gguf")
    odd = SplitDevice(device_id="tpu:0", free_bytes=9000, bandwidth_gbps=9.0, runtime="tpu")
    with pytest.raises(CannotExpress, match="no name for tpu:0"):
        llama_cpp(split_layers(needs, [odd]), needs, "m.gguf")


def test_engines_for_the_host_and_other_runtimes():
    """Rule: the host is "cpu" to accelerate and nothing to vLLM; ROCm and Metal have their words."""
    needs = ModelNeeds(
        name="m",
        layers=(ModelLayer(weight_bytes=1000),) * 3,
        layer_module="model.layers",
        form="safetensors",
    )
    host = SplitDevice(device_id="cpu:0", free_bytes=1000, bandwidth_gbps=1.0, host=True)

    def cards(runtime, count):
        return [
            SplitDevice(
                device_id=f"{runtime}:{n}", free_bytes=1000, bandwidth_gbps=9.0, runtime=runtime
            )
            for n in range(count)
        ]

    mixed = split_layers(needs, [*cards("rocm", 2), host])
    places = json.loads(accelerate(mixed, needs, "m"))
    assert sorted(map(str, places.values())) == ["0", "1", "cpu"]
    assert "HIP_VISIBLE_DEVICES=" in accelerate_hint(mixed)
    with pytest.raises(CannotExpress, match="no pipeline stage on the host"):
        vllm(mixed, needs, "m")
    rocm = vllm(split_layers(needs, cards("rocm", 3)), needs, "m")
    assert "HIP_VISIBLE_DEVICES=" in rocm
    metal = split_layers(
        needs,
        [SplitDevice(device_id="metal:0", free_bytes=9000, bandwidth_gbps=9, runtime="metal")],
    )
    assert set(json.loads(accelerate(metal, needs, "m")).values()) == {"mps"}
    assert accelerate_hint(metal) == "in this map 0 is metal:0"
    both = split_layers(needs, [*cards("rocm", 2), *cards("cuda", 1)])
    with pytest.raises(CannotExpress, match="choose one with --on"):
        accelerate(both, needs, "m")
    apart = [
        SplitDevice(
            device_id=f"{n}/cuda:0", node=n, free_bytes=2000, bandwidth_gbps=9.0, runtime="cuda"
        )
        for n in "ab"
    ]
    with pytest.raises(CannotExpress, match="unlike machines"):
        vllm(split_layers(needs, apart), needs, "m")
    only_host = split_layers(
        needs, [SplitDevice(device_id="cpu:0", free_bytes=9000, bandwidth_gbps=1.0, host=True)]
    )
    assert "--device none -ngl 0" in llama_cpp(
        only_host, msgspec.structs.replace(needs, form="gguf"), "m.gguf"
    )


class TestDoesNotFit:
    def test_never_and_not_now_differ(self, script, big, exo_gpu):
        """Rule: 69 where it never fits, 75 where it would if others left; what would fit is said."""
        script(card("cuda:0"), HOST)
        done = exo_gpu("split", big)
        assert (done.returncode, done.stdout) == (69, "")
        said = " ".join(done.stderr.split())
        assert "big does not fit" in said
        assert "the first 18 of 40 layers in the machine's memory" in said
        full = {"memory_used_bytes": 12 * GIB, "memory_total_bytes": 48 * GIB}
        script(card("cuda:0", memory_bytes=48 * GIB, sample=full))
        done = exo_gpu("split", big)
        assert done.returncode == 75
        assert "once what is on these devices now has left" in " ".join(done.stderr.split())

    def test_json_holds_the_shortage(self, script, big, exo_gpu):
        """Rule: programs get the reason as figures, and the same status."""
        script(card("cuda:0"), HOST)
        done = exo_gpu("split", big, "--json")
        assert done.returncode == 69
        plan = json.loads(done.stdout)
        assert plan["shares"] == []
        assert plan["shortage"]["layers_on_host"] == 18

    def test_the_host_helps(self, script, big, exo_gpu):
        """Rule: what was advised works."""
        script(card("cuda:0"), HOST)
        done = exo_gpu("split", big, "--host", "--format", "llama.cpp", "--buffer", "1GiB")
        assert done.returncode == 0, done.stderr
        assert "stay in the machine's memory" in done.stdout


class TestGivenDevices:
    def test_a_box_from_a_file(self, script, big, exo_gpu, tmp_path):
        """Rule: devices that are not here are planned for with what the file says."""
        script(HOST)
        devices = [
            {"device_id": name, "free_bytes": 30 * GIB, "bandwidth_gbps": 900.0} for name in "ab"
        ]
        links = [{"bandwidth_gbps": 50.0}]
        (tmp_path / "box.json").write_text(json.dumps({"devices": devices, "links": links}))
        done = exo_gpu("split", big, "--devices", "box.json", "--json")
        plan = json.loads(done.stdout)
        assert {one["device_id"] for one in plan["shares"]} == {"a", "b"}
        assert plan["assumptions"] == []
        both = exo_gpu("split", big, "--devices", "box.json", "--on", "cuda")
        assert both.returncode == 2
        assert "--devices cannot go with" in both.stderr

    def test_a_network_from_a_file(self, script, big, exo_gpu, tmp_path):
        """Rule: nodes with tables get a placement by the flow, as a table or JSON."""
        script(HOST)
        names = ["a", "b"]
        links = [("source", "a"), ("a", "b"), ("b", "sink")]
        network = {
            "nodes": [{"name": one, "tokens_per_second": [20, 10]} for one in names],
            "links": [
                {"source": a, "target": b, "bytes_per_second": 1e9, "latency_seconds": 0.001}
                for a, b in links
            ],
            "layer_count": 4,
            "activation_bytes_per_token": 1000,
        }
        (tmp_path / "net.json").write_text(json.dumps(network))
        done = exo_gpu("split", big, "--devices", "net.json", "--json")
        assert json.loads(done.stdout)["placement"] == {"a": [0, 2], "b": [2, 4]}
        shown = exo_gpu("split", big, "--devices", "net.json").stdout
        assert "flow 10.00 tokens/s; bound 10.00" in shown
        assert "2.0 nodes" in shown
        refused = exo_gpu("split", big, "--devices", "net.json", "--format", "vllm")
        assert refused.returncode == 2

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "box.json"),
            ('{"devices": [{"device_id": "a", "free_bytes": 1}]}', "bandwidth_gbps"),
            ('{"devices": [{"device_id": "a", "free_bytes": 1, "bandwidth_gbps": 0}]}', "above 0"),
            ('{"device": []}', "device"),
            ('{"devices": []}', "at least one device"),
        ],
    )
    def test_a_file_that_cannot_be_is_refused(self, script, big, exo_gpu, tmp_path, text, said):
        """Rule: one line that names the file or the field, and status 2."""
        script(HOST)
        (tmp_path / "box.json").write_text(text)
        done = exo_gpu("split", big, "--devices", "box.json")
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nowhere.gguf"], 1, "nowhere.gguf cannot be read"),
        ([GGUF, "--context", "999999999"], 2, "at most 32768 tokens"),
        ([GGUF, "--context", "0"], 2, "--context"),
        ([GGUF, "--bandwidth", "cuda:0=fast"], 2, "is not ID=GBPS"),
        ([GGUF, "--bandwidth", "cuda:0=-1"], 2, "is not ID=GBPS"),
        ([GGUF, "--bandwidth", "cuda:7=5"], 2, "cuda:7"),
        ([GGUF, "--reserve", "much"], 2, "reserve"),
        ([GGUF, "--device", "cuda:9"], 69, "cuda:9"),
        ([GGUF, "--on", "xpu"], 69, "no device here can take layers"),
        ([GGUF, "--format", "vlm"], 2, "vlm"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_status(box, exo_gpu, arguments, status, said):
    """Rule: the error names what was asked, and nothing is printed as if it were a plan."""
    done = exo_gpu("split", *arguments)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert said in done.stderr


def test_a_device_without_a_bandwidth_is_named(script, exo_gpu):
    """Rule: what is missing, and three ways out."""
    script(card("cuda:0", bandwidth_gbps=None), HOST)
    done = exo_gpu("split", GGUF)
    assert done.returncode == 2
    assert "bandwidth of cuda:0" in done.stderr
    assert "exo-gpu probe" in done.stderr
    assert exo_gpu("split", GGUF, "--bandwidth", "cuda:0=500").returncode == 0
