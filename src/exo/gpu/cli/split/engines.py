"""A plan in the words of engines; where one cannot express it, that is said.

llama.cpp: ``tools/server/README.md`` (``--device``, ``-ts``, ``-ngl``) and ``load_tensors`` of
``src/llama-model.cpp``. vLLM: ``get_pp_indices`` of ``vllm/distributed/utils.py``. accelerate:
``dispatch_model``. exo: ``ShardAssignments`` of ``src/exo/shared/types/worker/runners.py``.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.vocabulary.errors import ExoGpuError

if TYPE_CHECKING:
    from exo.gpu.vocabulary.model import ModelNeeds
    from exo.gpu.vocabulary.split import DeviceShare, SplitDevice, SplitPlan

_LLAMA_NAMES = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan", "xpu": "SYCL", "metal": "MTL"}
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}


class CannotExpress(ExoGpuError, ValueError):
    """An engine has no words for this plan."""


def llama_cpp(plan: SplitPlan, model: ModelNeeds, path: str) -> str:
    """The options of ``llama-server``, ready for a shell.

    It counts the output as one more layer, which comes last, and keeps the embedding on the host.
    Whole numbers in ``-ts`` that add up to ``-ngl`` give exactly these layers.

    Raises:
        CannotExpress: for a device of a runtime that llama.cpp has no name for.

    """
    if model.form == "safetensors":
        raise CannotExpress(
            "llama.cpp reads GGUF only: convert the model, and split the GGUF, whose bytes differ"
        )
    devices = _by_id(plan)
    on_host = sum(share.layer_count for share in plan.shares if share.host)
    rest = [share for share in plan.shares if not share.host]
    counts = [share.layer_count for share in rest]
    words = ["llama-server", "-m", path, "--split-mode", "layer"]
    if rest:
        counts[-1] += 1
        names = [_llama_name(devices[share.device_id]) for share in rest]
        words += ["--device", ",".join(names), "-ts", ",".join(map(str, counts))]
    else:
        words += ["--device", "none"]
    layers = sum(counts)
    words += ["-ngl", str(layers), "-c", str(plan.context_tokens * _in_flight(plan))]
    if _in_flight(plan) > 1:
        words += ["-np", str(_in_flight(plan))]
    line = shlex.join(words)
    if any(devices[share.device_id].runtime == "cuda" for share in rest):
        line = f"CUDA_DEVICE_ORDER=PCI_BUS_ID {line}"
    if on_host:
        line += f"\n# the first {on_host} layers stay in the machine's memory"
    return line


def _llama_name(device: SplitDevice) -> str:
    if device.node:
        raise CannotExpress(
            f"llama.cpp names devices of this machine; {device.device_id} is on {device.node}: "
            "start rpc-server there, and put its RPC device in the place of this one"
        )
    name = _LLAMA_NAMES.get(device.runtime)
    number = device.device_id.rpartition(":")[2]
    if name is None or not number.isdigit():
        raise CannotExpress(
            f"llama.cpp has no name for {device.device_id} (runtime {device.runtime or 'unknown'})"
        )
    return f"{name}{number}"


def vllm(plan: SplitPlan, model: ModelNeeds, path: str) -> str:
    """The environment and options of ``vllm serve``.

    Raises:
        CannotExpress: for layers on the host, several runtimes or machines.

    """
    del model
    devices = [_by_id(plan)[share.device_id] for share in plan.shares]
    if any(device.host for device in devices):
        raise CannotExpress("vLLM has no pipeline stage on the host: leave --host out")
    runtime = _one_runtime(plan, "vLLM")
    if len({device.node for device in devices}) > 1:
        raise CannotExpress(
            "vLLM gives stages to machines in an order of its own, so that unlike machines cannot "
            "be told which layers they get"
        )
    counts = ",".join(str(share.layer_count) for share in plan.shares)
    variables = [_visible(runtime, devices)] if runtime in _VISIBLE else []
    if len(devices) > 1:
        variables.append(f"VLLM_PP_LAYER_PARTITION={counts}")
    options = ["--pipeline-parallel-size", str(len(devices)), "--tensor-parallel-size", "1"]
    options += [
        "--max-model-len",
        str(plan.context_tokens),
        "--max-num-seqs",
        str(_in_flight(plan)),
    ]
    return " ".join([*variables, shlex.join(["vllm", "serve", path, *options])])


def _in_flight(plan: SplitPlan) -> int:
    """How many sequences there are at once, each with its cache."""
    return plan.batch * (len(plan.shares) if plan.goal == "throughput" else 1)


def accelerate(plan: SplitPlan, model: ModelNeeds, path: str) -> str:
    """The ``device_map`` of ``from_pretrained``, by the modules that the tensors name.

    Raises:
        CannotExpress: for a model that does not tell its modules, or several runtimes.

    """
    del path
    if not model.layer_module:
        raise CannotExpress(
            f"a device_map needs the names of modules, which a model in {model.form} does not "
            "tell: give its safetensors"
        )
    runtime = _one_runtime(plan, "accelerate")
    places: dict[str, int | str] = {}
    number = 0
    for share in plan.shares:
        place: int | str = "cpu" if share.host else "mps" if runtime == "metal" else number
        number += 0 if share.host else 1
        if share.first_layer == 0:
            places.update(dict.fromkeys(model.first_modules, place))
        for layer in range(share.first_layer, share.end_layer):
            places[f"{model.layer_module}.{layer}"] = place
        if share.end_layer == plan.layer_count:
            places.update(dict.fromkeys(model.last_modules, place))
    return _as_json(places)


def accelerate_hint(plan: SplitPlan) -> str:
    """Which device each number of the map stands for."""
    devices = [_by_id(plan)[share.device_id] for share in plan.shares if not share.host]
    numbered = ", ".join(f"{number} is {one.device_id}" for number, one in enumerate(devices))
    runtime = devices[0].runtime if devices else ""
    if runtime not in _VISIBLE:
        return f"in this map {numbered}" if numbered else ""
    return f"in this map {numbered}: start with {_visible(runtime, devices)}"


def exo(plan: SplitPlan, model: ModelNeeds, path: str) -> str:
    """The shards of a pipeline as exo's ``ShardAssignments`` has them, a runner for each device."""
    del path
    card = {
        "modelId": model.name,
        "nLayers": plan.layer_count,
        "storageSize": {"inBytes": model.weight_bytes},
    }
    shards = {
        f"runner-{rank}": {"PipelineShardMetadata": _shard(share, rank, plan, card)}
        for rank, share in enumerate(plan.shares)
    }
    nodes = [_by_id(plan)[share.device_id].node or share.device_id for share in plan.shares]
    if len(set(nodes)) < len(nodes):
        raise CannotExpress("exo gives a node one shard: two devices of one node cannot have two")
    return _as_json(
        {
            "modelId": model.name,
            "runnerToShard": shards,
            "nodeToRunner": {node: f"runner-{rank}" for rank, node in enumerate(nodes)},
        }
    )


def _shard(share: DeviceShare, rank: int, plan: SplitPlan, card: dict[str, Any]) -> dict[str, Any]:
    return {
        "modelCard": card,
        "deviceRank": rank,
        "worldSize": len(plan.shares),
        "startLayer": share.first_layer,
        "endLayer": share.end_layer,
        "nLayers": plan.layer_count,
    }


RUNTIMES = {
    "vllm": frozenset({"cuda", "rocm", "xpu"}),
    "accelerate": frozenset({"cuda", "rocm", "xpu", "metal", "cpu"}),
}
"""Name of a format -> the runtimes of its engine, of which it uses one at a time."""

ENGINES = {"llama.cpp": llama_cpp, "vllm": vllm, "accelerate": accelerate, "exo": exo}
"""Name of a format -> what writes it."""


def _by_id(plan: SplitPlan) -> dict[str, SplitDevice]:
    return {device.device_id: device for device in plan.devices}


def _one_runtime(plan: SplitPlan, engine: str) -> str:
    devices = _by_id(plan)
    found = {devices[one.device_id].runtime for one in plan.shares if not one.host}
    if len(found) > 1:
        raise CannotExpress(
            f"{engine} runs on one runtime, and this plan uses {', '.join(sorted(found))}: "
            "choose one with --on"
        )
    return next(iter(found), "")


def _visible(runtime: str, devices: list[SplitDevice]) -> str:
    """The variable that makes exactly these devices visible, in this order."""
    names = [device.hardware_id or device.device_id for device in devices]
    if runtime == "rocm":  # HIP takes numbers; a UUID only in the outer variable
        names = [device.device_id.rpartition(":")[2] for device in devices]
    return f"{_VISIBLE[runtime]}={','.join(names)}"


def _as_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
