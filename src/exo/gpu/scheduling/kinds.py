"""Devices of one kind: whatever a request may say of what a device is, it says of all of them."""

from __future__ import annotations

from typing import Any

import msgspec

from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.request import Request, capability_key
from exo.gpu.vocabulary.snapshot import DeviceState

# Questions of unlike form that are remembered; a thousand of a hundred kinds are 100 kB.
_MASKS = 1000


class Kind(msgspec.Struct, frozen=True):
    """What devices of one kind have in common."""

    device_class: DeviceClass
    runtime: str
    vendor: str
    backend: str
    capability: tuple[int, ...] | None
    labels: frozenset[str]
    display: bool


class KindMask:
    """The kinds that a request allows, by number, and as a column once somebody made it."""

    __slots__ = ("allowed", "column")

    def __init__(self, allowed: list[bool]) -> None:
        self.allowed = allowed
        self.column: Any = None


class KindTable:
    """Numbers for the kinds met so far, and which of them a request allows."""

    def __init__(self) -> None:
        self._numbers: dict[Kind, int] = {}
        self._masks: dict[tuple[object, ...], KindMask] = {}

    def number(self, state: DeviceState) -> int:
        """The number of the device's kind."""
        device = state.device
        kind = Kind(
            device.device_class,
            device.runtime,
            device.vendor.casefold(),
            device.backend,
            capability_key(device.compute_capability),
            frozenset(state.settings.labels),
            bool(device.drives_display),
        )
        number = self._numbers.get(kind)
        if number is None:
            number = self._numbers[kind] = len(self._numbers)
            self._masks.clear()
        return number

    def mask(self, request: Request, *, no_display_of: str | None = None) -> KindMask | None:
        """Which kinds the request allows; None: all of them.

        ``no_display_of`` allows only this runtime, and no card that drives a display.
        """
        asked = (
            request.device_class,
            request.runtime,
            request.min_compute_capability,
            request.vendors,
            request.backends,
            request.labels,
            request.without_labels,
            no_display_of,
        )
        mask = self._masks.get(asked)
        if mask is None:
            if not any(asked):
                return None
            if len(self._masks) >= _MASKS:
                self._masks.clear()
            allowed = [_allows(kind, request, no_display_of) for kind in self._numbers]
            mask = self._masks[asked] = KindMask(allowed)
        return mask


def _allows(kind: Kind, request: Request, no_display_of: str | None) -> bool:
    """The filters about what a device is, in numbers."""
    if request.device_class not in {None, kind.device_class}:
        return False
    if request.runtime not in {None, kind.runtime}:
        return False
    if request.vendors and kind.vendor not in {name.casefold() for name in request.vendors}:
        return False
    if request.backends and kind.backend not in request.backends:
        return False
    least = capability_key(request.min_compute_capability)
    if least is not None and (kind.capability is None or kind.capability < least):
        return False
    if not kind.labels.issuperset(request.labels):
        return False
    if not kind.labels.isdisjoint(request.without_labels):
        return False
    return no_display_of is None or (not kind.display and kind.runtime == no_display_of)
