"""Random models and devices for the split, and an exhaustive search that shares no code with it."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import TYPE_CHECKING

import numpy as np

from exo.gpu.backends.datasheets import CARDS
from exo.gpu.vocabulary.model import ModelLayer, ModelNeeds
from exo.gpu.vocabulary.split import ASSUMED_LINKS, SplitDevice, SplitLink

if TYPE_CHECKING:
    from random import Random

GIB = 2**30


def random_case(lots: Random) -> tuple[ModelNeeds, list[SplitDevice], list[SplitLink], int, int]:
    """Unlike layers, unlike speeds, tight memory: model, devices, links, context, batch."""
    count, number = lots.randint(1, 12), lots.randint(1, 6)
    layers = tuple(
        ModelLayer(
            weight_bytes=lots.randint(1, 100) * 10**6,
            cache_bytes_per_token=lots.choice([0, lots.randint(1, 20) * 500]),
        )
        for _ in range(count)
    )
    embedding, tied = lots.randint(0, 50) * 10**6, lots.random() < 0.5
    model = ModelNeeds(
        name="random",
        layers=layers,
        embedding_bytes=embedding,
        output_bytes=embedding + 1000 if tied else lots.randint(0, 50) * 10**6,
        tied_bytes=embedding if tied else 0,
        activation_bytes_per_token=lots.choice([0, 8192]),
    )
    context, batch = lots.choice([100, 1000]), lots.choice([1, 4])
    total = model.weight_bytes + sum(one.cache_bytes(context) for one in layers) * batch
    devices = [
        SplitDevice(
            device_id=f"card:{place}",
            free_bytes=int(total * lots.uniform(0.3, 2.5) / max(1.0, 0.6 * number)),
            bandwidth_gbps=lots.choice([100.0, lots.uniform(50, 1000)]),
            node=lots.choice("ab"),
        )
        for place in range(number)
    ]
    links = [
        SplitLink(
            source=one.device_id,
            target=other.device_id,
            bandwidth_gbps=lots.uniform(0.1, 30),
            latency_seconds=lots.uniform(0, 1e-3),
        )
        for one in devices
        for other in devices
        if one is not other and lots.random() < 0.3
    ]
    return model, devices, links, context, batch


def best_by_trying(
    model: ModelNeeds,
    devices: list[SplitDevice],
    links: list[SplitLink],
    context: int,
    batch: int,
    *,
    longest: bool,
) -> float:
    """The least seconds of every set, order and cut there is; infinity where none fits."""
    best = np.inf
    hops, moving = _ways(model, devices, links, batch)
    for stages in range(1, min(len(devices), len(model.layers)) + 1):
        seconds = _stage_seconds(model, devices, context, batch, stages if longest else 1)
        orders = np.array(list(permutations(range(len(devices)), stages)))
        inner = list(combinations(range(1, len(model.layers)), stages - 1))
        cuts = np.array([(0, *one, len(model.layers)) for one in inner])
        totals = np.zeros((len(orders), len(cuts)))
        for place in range(stages):
            part = seconds[
                orders[:, place][:, None], cuts[:, place][None], cuts[:, place + 1][None]
            ]
            totals = np.maximum(totals, part) if longest else totals + part
            if place:
                way = (moving if longest else hops)[orders[:, place - 1], orders[:, place]]
                totals = (np.maximum if longest else np.add)(totals, way[:, None])
        best = min(best, float(totals.min()))
    return best


def _stage_seconds(
    model: ModelNeeds, devices: list[SplitDevice], context: int, batch: int, batches: int
) -> np.ndarray:
    """By device, first and end layer; infinity where that does not fit."""
    count = len(model.layers)
    table = np.full((len(devices), count + 1, count + 1), np.inf)
    for first in range(count):
        read = takes = 0
        for end in range(first + 1, count + 1):
            layer = model.layers[end - 1]
            cache = layer.cache_bytes_per_token * context * batch
            read += layer.weight_bytes + cache
            takes += layer.weight_bytes + cache * batches
            all_read, all_takes = read, takes
            if first == 0:
                all_takes += model.embedding_bytes
            if end == count:
                all_read += model.output_bytes
                all_takes += model.output_bytes - (model.tied_bytes if first == 0 else 0)
            for place, device in enumerate(devices):
                if all_takes <= device.free_bytes:
                    table[place, first, end] = all_read / device.bandwidth_gbps / 1e9
    return table


def _ways(
    model: ModelNeeds, devices: list[SplitDevice], links: list[SplitLink], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    hops, moving = np.zeros((2, len(devices), len(devices)))
    for a, one in enumerate(devices):
        for b, other in enumerate(devices):
            given = [
                link
                for link in links
                if (link.source, link.target) == (one.device_id, other.device_id)
            ]
            link = given[0] if given else ASSUMED_LINKS[one.node != other.node]
            moving[a, b] = model.activation_bytes_per_token * batch / link.bandwidth_gbps / 1e9
            hops[a, b] = moving[a, b] + link.latency_seconds
    return hops, moving


# Layers, bytes of a layer in 4.5 bits a weight, cache of a token in 16 bits, width, vocabulary.
MODELS = {
    "8B": (32, 122_683_392, 4096, 4096, 128_256),
    "14B": (48, 154_140_672, 4096, 5120, 152_064),
    "32B": (64, 274_726_912, 4096, 5120, 152_064),
    "70B": (80, 481_296_384, 4096, 8192, 128_256),
    "123B": (88, 778_567_680, 4096, 12288, 32_768),
}


def named_model(name: str) -> ModelNeeds:
    """A dense model of such a size, as common open ones are built."""
    layers, layer_bytes, cache, width, words = MODELS[name]
    head = words * width * 9 // 16
    layer = ModelLayer(
        weight_bytes=layer_bytes,
        cache_bytes_per_token=cache,
        parameters=layer_bytes * 16 // 9,
    )
    return ModelNeeds(
        name=name,
        layers=(layer,) * layers,
        embedding_bytes=head,
        output_bytes=head,
        output_parameters=words * width,
        activation_bytes_per_token=2 * width,
    )


def random_box(lots: Random, number: int) -> list[SplitDevice]:
    """Cards of datasheets in one machine, some memory in use on each."""
    devices = []
    for place in range(number):
        card = lots.choice(CARDS)
        memory = card.memory_gib * GIB
        devices.append(
            SplitDevice(
                device_id=f"card:{place}",
                name=card.name,
                free_bytes=int(memory * lots.uniform(0.85, 0.98)),
                total_bytes=memory,
                buffer_bytes=GIB,
                bandwidth_gbps=card.bandwidth_gbps,
                compute_gflops=card.fp16_tflops * 1000,
            )
        )
    return devices
