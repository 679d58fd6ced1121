"""Samples as real devices give them: noise, steps and gaps, the same for the same seed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 2**30
START = 1_700_000_040.0  # the first second of a minute


def realistic(
    device_id: str, count: int, *, start: float = START, cadence: float = 1.0, seed: int = 0
) -> Iterator[GPUMetrics]:
    """A busy card with the readings of NVML, sampled with a jitter of a few milliseconds."""
    draw = random.Random(f"{device_id} {seed}")
    used, temperature, energy = 8 * GIB, 60.0, 0.0
    for index in range(count):
        busy = draw.random() < 0.9
        power = max(20.0, draw.gauss(280.0 if busy else 90.0, 12.0))
        energy += power * cadence
        temperature += draw.choice((-1.0, 0.0, 0.0, 0.0, 1.0)) * (40.0 < temperature < 85.0)
        used += draw.choice((0, 0, 0, 0, 64, -64, 512, -512)) * 2**20
        yield GPUMetrics(
            device_id,
            start + index * cadence + draw.random() * 0.004,
            min(max(used, 0), 24 * GIB),
            24 * GIB,
            float(draw.randint(70, 100) if busy else draw.randint(0, 20)),
            round(power, 3),
            temperature,
            1500.0 + 15 * draw.randint(0, 30),
            memory_reserved_bytes=425_984_000,
            memory_utilization_percent=float(draw.randint(20, 60)),
            memory_clock_mhz=10501.0,
            power_limit_watts=450.0,
            energy_joules=round(energy, 3),
            fan_percent=float(30 + int(temperature - 60) * 2 % 60),
            corrected_errors=0,
            uncorrected_errors=0,
            pcie_generation=4,
            pcie_width=16,
        )


def plain(device_id: str, count: int, *, start: float = START, cadence: float = 1.0):
    """Samples whose power is their number: easy to find again."""
    return [
        GPUMetrics(device_id, start + index * cadence, power_watts=float(index))
        for index in range(count)
    ]
