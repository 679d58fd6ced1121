"""Where a device stands among those that will do: the one order of all decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from exo.gpu.scheduling.scorer import natural_key
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.snapshot import DeviceState, Health

Candidate = TypeVar("Candidate")

# A device of a higher tier is taken only when none of a lower one is left in its class.
WELL, DEGRADED, SLEEPING, UNSAMPLED, AVOIDED = range(5)
TIER_NOTES = {
    DEGRADED: "degraded: behind every sound device",
    SLEEPING: "asleep: behind every device that is awake, and woken when used",
    UNSAMPLED: "no sample yet: behind every sampled device",
}
AVOIDED_NOTE = "set to be avoided: behind everything else of its class"
PREFERRED_NOTE = "preferred by the request: before others as sound as it"
DISPLAY_NOTE = "drives a display: behind the others of its runtime"


def tier_of(state: DeviceState) -> int:
    """How well the device is known to do; the lowest is the best."""
    if state.sample is None:
        return UNSAMPLED
    if state.sample.sleeping or state.health is Health.SLEEPING:
        return SLEEPING
    return DEGRADED if state.health is Health.DEGRADED else WELL


def place_of(state: DeviceState, *, preferred: bool = False) -> int:
    """Its tier, behind all tiers where a person wants it avoided and the request does not name it.

    Among equals, what the request prefers comes first: places count in twos.
    """
    tier = tier_of(state)
    if state.settings.avoid and not preferred:
        tier += AVOIDED
    return 2 * tier + (not preferred)


def identity_of(device: GPUDevice) -> tuple[object, ...]:
    """What decides between devices that are equal in all else."""
    return (
        natural_key(device.hardware_id),
        natural_key(device.node),
        natural_key(device.device_id),
    )


def displays_last(
    ranked: Sequence[Candidate], of: Callable[[Candidate], tuple[GPUDevice, int]]
) -> list[Candidate]:
    """The same order, but with cards that drive a display last of their class, runtime and place.

    The places that a runtime has among the others stay as they are, so that a desktop's only card
    of a runtime loses nothing to another runtime. ``of`` gives the device and its place.
    """
    seats: dict[tuple[object, ...], list[int]] = {}
    for seat, candidate in enumerate(ranked):
        device, place = of(candidate)
        seats.setdefault((device.device_class, device.runtime, place), []).append(seat)
    arranged = list(ranked)
    for group in seats.values():
        order = sorted(group, key=lambda seat: bool(of(ranked[seat])[0].drives_display))
        for seat, source in zip(group, order, strict=True):
            arranged[seat] = ranked[source]
    return arranged
