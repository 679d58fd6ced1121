"""One line for the whole machine or cluster: how many, how well, how full, who is on it."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.cli.render import WIDTH, memory, reading
from exo.gpu.vocabulary.device import HOST_POOL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from exo.gpu.vocabulary.process import DeviceUser
    from exo.gpu.vocabulary.snapshot import DeviceState


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums and means over the devices that tell; None where none does."""

    devices: int
    by_health: dict[str, int]
    cordoned: int
    memory_used_bytes: int | None
    """Of pools that are the devices' own, each once; those that do not tell are left out."""
    memory_total_bytes: int | None
    host_used_bytes: int | None
    host_total_bytes: int | None
    utilization_percent: float | None
    """The mean."""
    power_watts: float | None
    power_devices: int
    """How many devices tell their power."""
    leases: int
    foreign: int
    """Processes that work without a lease on their device."""


def totals(states: Sequence[DeviceState], users: Iterable[DeviceUser]) -> Totals:
    """What a person wants to know of all devices together."""
    pools = _pools(states)
    own = [room for (_, pool), room in pools.items() if pool != HOST_POOL]
    host = [room for (_, pool), room in pools.items() if pool == HOST_POOL]
    busy = _readings(states, "compute_utilization_percent")
    watts = _readings(states, "power_watts")
    return Totals(
        devices=len(states),
        by_health=dict(Counter(state.health.value for state in states)),
        cordoned=sum(state.cordon is not None for state in states),
        memory_used_bytes=_sum(used for used, _ in own),
        memory_total_bytes=_sum(total for _, total in own),
        host_used_bytes=_sum(used for used, _ in host),
        host_total_bytes=_sum(total for _, total in host),
        utilization_percent=sum(busy) / len(busy) if busy else None,
        power_watts=sum(watts) if watts else None,
        power_devices=len(watts),
        leases=sum(len(state.leases) for state in states),
        foreign=len({(one.device_id, one.pid) for one in users if one.foreign}),
    )


def totals_line(sums: Totals, *, width: int = WIDTH) -> str:
    """The totals in words, as many as fit whole into ``width``; unknown is ``-``."""
    kept: list[str] = []
    for part in _parts(sums):
        if not kept or len("  ".join((*kept, part))) <= width:
            kept.append(part)
    return "  ".join(kept)


def _parts(sums: Totals) -> Iterator[str]:
    """The most wanted first."""
    yield _devices(sums)
    if sums.cordoned:
        yield f"{sums.cordoned} cordoned"
    if sums.memory_total_bytes is not None:
        yield f"mem {memory(sums.memory_used_bytes, sums.memory_total_bytes)}"
    if sums.devices:
        yield f"util {reading(sums.utilization_percent, '%')}"
        yield f"power {reading(sums.power_watts, 'W')}"
    if sums.leases:
        yield _count(sums.leases, "lease")
    if sums.foreign:
        yield f"{sums.foreign} foreign"
    if sums.host_total_bytes is not None:
        yield f"host {memory(sums.host_used_bytes, sums.host_total_bytes)}"


def _devices(sums: Totals) -> str:
    if len(sums.by_health) == 1:
        return f"{_count(sums.devices, 'device')} {next(iter(sums.by_health))}"
    health = ", ".join(f"{count} {name}" for name, count in sums.by_health.items())
    return ": ".join(filter(None, (_count(sums.devices, "device"), health)))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _pools(states: Iterable[DeviceState]) -> dict[tuple[str, str], tuple[int, int]]:
    """Used and total bytes of each pool, by node and name, from the first device that tells."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for state in states:
        sample = state.sample
        if sample is None or sample.memory_used_bytes is None or sample.memory_total_bytes is None:
            continue
        pool = (state.device.node, state.device.memory_pool)
        found.setdefault(pool, (sample.memory_used_bytes, sample.memory_total_bytes))
    return found


def _readings(states: Iterable[DeviceState], metric: str) -> list[float]:
    values = (None if state.sample is None else getattr(state.sample, metric) for state in states)
    return [value for value in values if value is not None and math.isfinite(value)]


def _sum(values: Iterable[int]) -> int | None:
    known = list(values)
    return sum(known) if known else None
