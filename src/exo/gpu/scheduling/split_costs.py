"""What ranges of layers cost on each device: bytes, and seconds by a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exo.gpu.vocabulary.model import ModelNeeds
    from exo.gpu.vocabulary.split import SplitDevice, SplitLink

    Matrix = NDArray[np.float64]
    Row = NDArray[np.float64]

PREFILL_CHUNK_TOKENS = 512
"""How many tokens of a prompt engines work on at once; llama.cpp's ``--ubatch-size``."""
_GIGA = 1e9


class Work(msgspec.Struct, frozen=True):
    """What one step asks of each layer: bytes that are read, and floating-point operations.

    The last place of each is the output's.
    """

    read_bytes: NDArray[np.float64]
    operations: NDArray[np.float64]

    def seconds(self, device: SplitDevice) -> Row:
        """How long each takes there: reading or computing, whichever is longer."""
        reading = self.read_bytes / (device.bandwidth_gbps * _GIGA)
        if device.compute_gflops is None:
            return reading
        return np.maximum(reading, self.operations / (device.compute_gflops * _GIGA))


def work_of(model: ModelNeeds, tokens: int, cached_bytes: Row) -> Work:
    """What a step of so many tokens asks, which reads these bytes of each layer's cache.

    Of ``experts``, each token uses ``experts_used``, as if drawn evenly: a step of more tokens
    reads more of them.
    """
    used = model.experts_used / model.experts if model.experts and model.experts_used else 1.0
    touched = 1.0 - (1.0 - used) ** tokens
    layers = model.layers
    read = [one.weight_bytes - one.expert_bytes * (1.0 - touched) for one in layers]
    numbers = [
        0.0 if one.parameters is None else one.parameters - one.expert_parameters * (1.0 - used)
        for one in layers
    ]
    output = model.output_parameters or 0
    return Work(
        np.array([*read, float(model.output_bytes)]) + np.append(cached_bytes, 0.0),
        2.0 * tokens * np.array([*numbers, float(output)]),
    )


class Costs:
    """Tables for one context, batch and number of batches under way at once.

    ``seconds[d][m, l]`` is how long device d takes for the layers m up to l; infinity where they do
    not fit, or are none. ``hops`` and ``transfers`` are seconds from one device to another, with
    and without the latency.
    """

    def __init__(
        self,
        model: ModelNeeds,
        devices: Sequence[SplitDevice],
        links: Sequence[SplitLink],
        *,
        context_tokens: int,
        batch: int,
        batches: int = 1,
    ) -> None:
        self.model, self.devices, self.batch = model, devices, batch
        cache = np.array([float(one.cache_bytes(context_tokens)) for one in model.layers])
        self.cache_bytes = cache * batch * batches
        self.weight_bytes = np.array([float(one.weight_bytes) for one in model.layers])
        self.work = work_of(model, batch, cache * batch)
        self.layer_seconds = [self.work.seconds(device) for device in devices]
        self.needed = self._needed()
        self.seconds = [self._table(number) for number in range(len(devices))]
        self.hops, self.transfers = _ways(model, devices, links, batch)

    def _needed(self) -> Matrix:
        """Bytes of the layers m up to l, with what stands beside the first and the last one."""
        sums = np.concatenate([[0.0], np.cumsum(self.weight_bytes + self.cache_bytes)])
        table = sums[None, :] - sums[:, None]
        table[0, :] += self.model.embedding_bytes
        table[:, -1] += self.model.output_bytes
        table[0, -1] -= self.model.tied_bytes
        return table

    def _table(self, number: int) -> Matrix:
        each = self.layer_seconds[number]
        sums = np.concatenate([[0.0], np.cumsum(each[:-1])])
        table = sums[None, :] - sums[:, None]
        table[:, -1] += each[-1]
        empty = np.tri(len(sums), dtype=bool)
        table[empty | (self.needed > self.devices[number].usable_bytes)] = np.inf
        return table

    @property
    def layer_count(self) -> int:
        """How many layers there are."""
        return len(self.weight_bytes)


def _ways(
    model: ModelNeeds, devices: Sequence[SplitDevice], links: Sequence[SplitLink], tokens: int
) -> tuple[Matrix, Matrix]:
    count = len(devices)
    hops, transfers = np.zeros((count, count)), np.zeros((count, count))
    moved = model.activation_bytes_per_token * tokens
    for source, one in enumerate(devices):
        for target, other in enumerate(devices):
            link = next((link for link in links if link.joins(one, other)), None)
            if source == target or link is None:
                hops[source, target] = transfers[source, target] = np.inf
                continue
            transfers[source, target] = moved / (link.bandwidth_gbps * _GIGA)
            hops[source, target] = transfers[source, target] + link.latency_seconds
    return hops, transfers
