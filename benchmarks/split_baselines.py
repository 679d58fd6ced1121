"""How others split a model over devices, and what that costs by the same tables as ours."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.scheduling.split_costs import Costs
    from exo.gpu.vocabulary.split_network import SplitNetwork

Counts = list[int]


def equal_layers(costs: Costs) -> Counts:
    """The same for each, the first ones one more."""
    layers, devices = costs.layer_count, len(costs.devices)
    return [layers // devices + (place < layers % devices) for place in range(devices)]


def exo_ring(costs: Costs) -> Counts:
    """exo: in proportion to free memory, by the largest remainder, one layer at least."""
    memory = [device.free_bytes for device in costs.devices]
    shares = [costs.layer_count * one / sum(memory) for one in memory]
    counts = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda one: counts[one] - shares[one])
    for place in order[: costs.layer_count - sum(counts)]:
        counts[place] += 1
    for place, count in enumerate(counts):
        if not count and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[place] = 1
    return counts


def llama_cpp(costs: Costs) -> Counts:
    """llama.cpp: layer il of n + 1, the output included, at il / (n + 1) of all free memory."""
    memory = np.array([device.free_bytes for device in costs.devices], dtype=np.float64)
    borders = np.cumsum(memory) / memory.sum()
    at = np.arange(costs.layer_count) / (costs.layer_count + 1)
    places = np.minimum(np.searchsorted(borders, at, side="right"), len(memory) - 1)
    return np.bincount(places, minlength=len(memory)).tolist()


def petals_greedy(costs: Costs) -> Counts:
    """As servers of Petals that come one after the other: each as many layers as fit on it."""
    counts, begin = [], 0
    for table in costs.seconds:
        ends = np.flatnonzero(np.isfinite(table[begin]))
        end = int(ends.max()) if ends.size else begin
        counts.append(end - begin)
        begin = end
    return counts


BASELINES = {
    "equal layers": equal_layers,
    "exo's ring": exo_ring,
    "llama.cpp": llama_cpp,
    "Petals-like": petals_greedy,
}


def seconds_of(costs: Costs, counts: Sequence[int], *, longest: bool) -> float:
    """What layers in the order of the devices cost; infinity where they do not fit."""
    if sum(counts) != costs.layer_count:
        return float("inf")
    used = [place for place, count in enumerate(counts) if count]
    ends = np.cumsum(counts)
    stages = [
        float(costs.seconds[place][ends[place] - counts[place], ends[place]]) for place in used
    ]
    if longest:
        return max([*stages, *(float(costs.transfers[a, b]) for a, b in pairwise(used))])
    return sum(stages) + sum(float(costs.hops[a, b]) for a, b in pairwise(used))


def petals_network(network: SplitNetwork) -> list[tuple[int, int]]:
    """Each node as many layers as its table has, where what covers them is the least so far."""
    covered = np.zeros(network.layer_count)
    placement = []
    for node in network.nodes:
        count = min(len(node.tokens_per_second), network.layer_count)
        spans = [
            (sorted(covered[first : first + count].tolist()), first)
            for first in range(network.layer_count - count + 1)
        ]
        first = min(spans)[1]
        covered[first : first + count] += node.tokens_per_second[count - 1]
        placement.append((first, first + count))
    return placement
