"""What a piece of work needs from the devices it runs on."""

from __future__ import annotations

from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

LARGEST_PRIORITY = 1000
"""Either way: the line keeps its order in floating point up to far beyond it."""


class Request(WireValue, frozen=True, kw_only=True):
    """What a piece of work needs; every field has a default that asks for nothing.

    Raises:
        InvalidValue: naming the field, for a count below 1, a negative memory or an empty name.

    """

    memory_bytes: int | None = None
    """Device memory in total, the runtime's own context included. None: not declared, which
    takes one of the device's slots instead."""
    count: int = 1
    """How many devices; all or nothing."""
    exclusive: bool = False
    """Nobody else's lease on the same device."""
    slots: int | None = None
    """How many leases without declared memory a device may have; None: as many as it states."""
    devices: tuple[str, ...] = ()
    """Only these, by device id, alias or hardware id; any class and runtime among them."""
    runtime: str | None = None
    """Only devices of this runtime (cuda, rocm, xpu, metal, vulkan, cpu)."""
    device_class: DeviceClass | None = None
    """Only devices of this class."""
    all_devices: bool = False
    """Every class and runtime at once, software and host beside hardware."""
    despite_cordon: bool = False
    """Also a device that is cordoned: for a probe that is to find out whether it is well."""
    holder: str = ""
    """Who asks, for people to read."""
    share: float | None = None
    """The part of a device that is asked for, above 0 and at most 1; None: not asked in shares."""
    priority: int = 0
    """Higher goes first in the line; each step is worth some minutes of waiting."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_whole("memory_bytes", self.memory_bytes, low=1, optional=True)
        check_whole("count", self.count, low=1)
        check_whole("slots", self.slots, low=1, optional=True)
        check_number("share", self.share, low=0, high=1, optional=True)
        if self.share == 0:
            raise InvalidValue("share", self.share, "above 0 and at most 1")
        check_number("priority", self.priority, low=-LARGEST_PRIORITY, high=LARGEST_PRIORITY)
        for name in self.devices:
            check_text("devices", name)
        if self.runtime is not None:
            check_text("runtime", self.runtime)
        if self.all_devices and (self.runtime or self.device_class or self.devices):
            raise InvalidValue("all_devices", True, "combined with a runtime, class or device list")
