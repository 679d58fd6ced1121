"""What no split can beat, for when there are too many devices to look at every set of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from exo.gpu.scheduling.split_costs import Costs

_GIGA = 1e9
_HALVINGS = 60


def least_total_seconds(costs: Costs) -> float:
    """Below any split's sum: layers cut at will, the fastest device filled first, links for free.

    The layers that are read most for each byte that they take go to the fastest device, which no
    exchange of parts can improve.
    """
    read, needed = _parts(costs)
    order = np.argsort(-read / np.maximum(needed, 1.0), kind="stable")
    devices = sorted(costs.devices, key=lambda device: -device.bandwidth_gbps)
    room = [float(device.usable_bytes) for device in devices]
    seconds, at = 0.0, 0
    for layer in order.tolist():
        left, takes, reads = 1.0, float(needed[layer]), float(read[layer])
        while left > 0 and at < len(devices):
            part = left if takes == 0 else min(left, room[at] / takes)
            seconds += part * reads / (devices[at].bandwidth_gbps * _GIGA)
            room[at] -= part * takes
            left -= part
            if left > 0:
                at += 1
        if left > 0:
            return np.inf
    return seconds


def least_longest_seconds(costs: Costs) -> float:
    """Below any split's longest stage: every device reads until then, or until it is full."""
    read, needed = _parts(costs)
    densest = float((read / np.maximum(needed, 1.0)).max())
    speeds = np.array([device.bandwidth_gbps * _GIGA for device in costs.devices])
    full = np.array([device.usable_bytes * densest for device in costs.devices])
    total = float(read.sum())
    if float(full.sum()) < total:
        return np.inf
    low, high = 0.0, total / float(speeds.min())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(np.minimum(speeds * middle, full).sum()) >= total:
            high = middle
        else:
            low = middle
    return low


def _parts(costs: Costs) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that each layer and the output are read, and that they take."""
    needed = np.append(costs.weight_bytes + costs.cache_bytes, float(costs.model.output_bytes))
    # Where one device has both ends, what is tied is there once.
    needed[-1] -= costs.model.tied_bytes
    return costs.work.read_bytes, needed
