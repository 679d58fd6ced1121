"""What a piece of work needs from the devices it runs on."""

from __future__ import annotations

import re

from msgspec.structs import force_setattr

from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.links import Interconnect
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.metrics import ABSOLUTE_ZERO_CELSIUS
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

DEFAULT_POLICY = "balanced"

_CAPABILITY = re.compile(r"[0-9]+(\.[0-9]+)*\Z", re.ASCII)
_LISTS = ("devices", "without_devices", "prefer", "vendors", "backends", "labels", "without_labels")

LARGEST_PRIORITY = 1000
"""Either way: the line keeps its order in floating point up to far beyond it."""


class Request(WireValue, frozen=True, kw_only=True):
    """What a piece of work needs; every field has a default that asks for nothing.

    Raises:
        InvalidValue: naming the field, for a count below 1, a memory below 1, a share outside
            0..1, an empty name, or anything else that cannot be.

    """

    memory_bytes: int | None = None
    """Device memory in total, the runtime's own context included. None: not declared, which
    takes one of the device's slots instead, unless a share is asked for."""
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
    """The part of each device that is needed, above 0 and at most 1."""
    host_cpus: int | None = None
    """Processor cores of the device's machine, beside the device."""
    host_memory_bytes: int | None = None
    """Memory of the device's machine, beside the device."""
    vendors: tuple[str, ...] = ()
    """Only devices of one of these vendors, in any spelling of case."""
    backends: tuple[str, ...] = ()
    """Only devices that one of these backends found."""
    min_compute_capability: str | None = None
    """At least this one, such as ``"8.6"``; its parts are compared as numbers."""
    labels: tuple[str, ...] = ()
    """Only devices that have all of these labels."""
    without_labels: tuple[str, ...] = ()
    """Only devices that have none of these labels."""
    min_idle_percent: float | None = None
    """At least this much of the device's compute free, within 0..100."""
    max_temperature_celsius: float | None = None
    node: str | None = None
    """Only devices of this machine."""
    same_node: bool = False
    """All devices of one machine."""
    interconnect: Interconnect = Interconnect.ANY
    """How each two of several devices must be joined at least."""
    prefer: tuple[str, ...] = ()
    """These before others of their class, by any name; others where these cannot."""
    without_devices: tuple[str, ...] = ()
    """None of these, by any name."""
    affinity_key: str = ""
    """What a warm worker may hold already, such as the name of a model: its device scores more."""
    priority: int = 0
    """Higher goes first in the line, each step is worth some minutes of waiting; a single decision
    does not look at it."""
    policy: str = DEFAULT_POLICY
    """Name of the policy that scores the devices."""
    expected_seconds: float | None = None
    """How long it will hold its devices, as far as who asks knows: less work stands further in
    front in the line. Nothing ends when the time is over."""
    kind: str = ""
    """What kind of work it is: what was learned of this kind tells how long it will take."""
    memory_basis: str = ""
    """Where ``memory_bytes`` was not declared but learned: from what, for people."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_whole("memory_bytes", self.memory_bytes, low=1, optional=True)
        check_whole("count", self.count, low=1)
        check_whole("slots", self.slots, low=1, optional=True)
        check_whole("host_cpus", self.host_cpus, low=1, optional=True)
        check_whole("host_memory_bytes", self.host_memory_bytes, low=1, optional=True)
        check_number("min_idle_percent", self.min_idle_percent, low=0, high=100, optional=True)
        check_number("expected_seconds", self.expected_seconds, low=0, optional=True)
        low = ABSOLUTE_ZERO_CELSIUS
        check_number(
            "max_temperature_celsius", self.max_temperature_celsius, low=low, optional=True
        )
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise InvalidValue("priority", self.priority, "a whole number")
        check_number("priority", self.priority, low=-LARGEST_PRIORITY, high=LARGEST_PRIORITY)
        self._check_share()
        self._check_names()
        if self.all_devices and (self.runtime or self.device_class or self.devices):
            raise InvalidValue("all_devices", True, "combined with a runtime, class or device list")

    def _check_share(self) -> None:
        if self.share is None:
            return
        check_number("share", self.share, low=0, high=1)
        if self.share == 0:
            raise InvalidValue("share", self.share, "above 0; leave it out to take a slot")

    def _check_names(self) -> None:
        for field in _LISTS:
            names = getattr(self, field)
            if not names:
                continue
            if isinstance(names, str):
                raise InvalidValue(field, names, "a list of names")
            for name in names:
                check_text(field, name)
        for field in ("runtime", "node"):
            if getattr(self, field) is not None:
                check_text(field, getattr(self, field), empty=field == "node")
        check_text("policy", self.policy)
        if self.device_class is not None and self.device_class not in tuple(DeviceClass):
            raise UnknownName("device_class", self.device_class, DeviceClass)
        if self.interconnect not in tuple(Interconnect):
            raise UnknownName("interconnect", self.interconnect, Interconnect)
        force_setattr(self, "interconnect", Interconnect(self.interconnect))
        asked = self.min_compute_capability
        if asked is not None and capability_key(asked) is None:
            raise InvalidValue("min_compute_capability", asked, 'a number such as "8.6"')


def capability_key(text: str | None) -> tuple[int, ...] | None:
    """The parts of ``"8.6"`` as numbers, to compare with; None for what is no such number.

    Zeros at the end do not count, so that ``"8"`` and ``"8.0"`` are the same.
    """
    if not isinstance(text, str) or not _CAPABILITY.match(text):
        return None
    parts = [int(part) for part in text.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
