"""Linux DRM cards as sysfs shows them; the only reader of ``/sys/class/drm``."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from exo.gpu.vocabulary.errors import DeviceLost, ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Value = TypeVar("Value")

SYSFS = Path("/sys/class/drm")

# All ones is how drivers write "unknown"; no attribute read here comes near it.
_LARGEST = 2**63 - 1

# sysfs gives no more at a time.
_PAGE = 4096

_CARD = re.compile(r"card([0-9]+)")  # connectors are named card0-HDMI-A-1
# No limit of a chip's temperature lies outside; some drivers state 0 for "none".
_LIMITS_MILLIDEGREES = (30_000, 200_000)

# Errors of sysfs reads that concern one attribute. ENODEV and ENXIO: the whole device is gone.
_GONE = {errno.ENODEV, errno.ENXIO}
_REASONS = {
    errno.ENOENT: "the driver has no {name}",
    errno.EACCES: "no permission to read {name}",
    errno.EPERM: "no permission to read {name}",
    errno.ENODATA: "the driver has no data for {name} at the moment",
    errno.EBUSY: "the device was too busy to tell {name}",
    errno.EOPNOTSUPP: "this device does not support {name}",
    errno.EINVAL: "the driver refuses to tell {name}",
    errno.EIO: "reading {name} failed: Input/output error",
}

# PCIe transfer rates in GT/s -> generation (PCI Express base specification).
_GENERATIONS = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}


class Card:
    """One DRM card. ``path`` is its folder, such as ``/sys/class/drm/card0``.

    Attributes are named as seen from there: ``device/vendor``.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self._folder = str(path)
        self._sensors: Path | None = None
        self._labels: dict[tuple[str, str], dict[str, str]] = {}
        self.trouble = ""
        """Why it does not say what it is; empty where it does, or where nothing is plugged in."""
        try:
            lines = self._read("device/uevent").decode(errors="replace").splitlines()
        except OSError as error:
            lines = []
            if error.errno != errno.ENOENT:
                self.trouble = f"{path} is not known: {error.strerror}"
        self._event = dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def driver(self) -> str:
        """Name of the kernel driver (``lspci -k``), such as amdgpu; empty when unbound."""
        return self._event.get("DRIVER", "")

    @property
    def pci_id(self) -> str:
        """Vendor and device in hexadecimal, such as ``1002:744c``; empty off the PCI bus."""
        return self._event.get("PCI_ID", "").lower()

    @property
    def pci_address(self) -> str | None:
        """Its place on the bus, such as ``0000:03:00.0``."""
        return self._event.get("PCI_SLOT_NAME", "").lower() or None

    @property
    def place(self) -> str:
        """What stays the same while it is plugged in: its place on the bus, else its folder."""
        return self.pci_address or self.path.name

    @property
    def sleeping(self) -> bool:
        """True when powered down; reading most driver attributes would then wake it."""
        return self._optional("device/power/runtime_status") in {"suspended", "suspending"}

    def text(self, *names: str) -> str:
        """The text of the first attribute that exists, without its newline.

        Raises:
            ReadingMissing: with the reason, when none can be read.
            DeviceLost: when the device is gone.

        """
        reasons: list[str] = []
        for name in names:
            try:
                return self._read(name).decode(errors="replace").strip()
            except OSError as error:
                reasons.append(self._reason(name, error))
        raise ReadingMissing(reasons[0])

    def number_of(self, *names: str, low: int = 0, high: int = _LARGEST) -> int:
        """The whole number in the first attribute that exists.

        Raises:
            ReadingMissing: with the reason, also for text that is no number within ``low..high``.
            DeviceLost: when the device is gone.

        """
        text = self.text(*names)
        try:
            number = int(text)
        except ValueError:
            raise ReadingMissing(f"{names[0]} holds {text[:40]!r}, which is no number") from None
        if not low <= number <= high:
            raise ReadingMissing(f"{names[0]} holds {number}, which is no reading")
        return number

    def whole(self, name: str) -> bytes:
        """A binary attribute.

        Raises:
            ReadingMissing: with the reason, when it cannot be read.
            DeviceLost: when the device is gone.

        """
        try:
            return self._read(name)
        except OSError as error:
            raise ReadingMissing(self._reason(name, error)) from error

    def names(self, pattern: str) -> list[str]:
        """Names of the attributes that match, in order; none where they cannot be listed."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.glob(pattern))

    def link_generation(self, folder: str = "device") -> int:
        """Generation of the PCIe link (``lspci -vv``, LnkSta) from its transfer rate.

        ``folder`` is the PCI device whose link upwards is meant.

        Raises:
            ReadingMissing: with the reason.
            DeviceLost: when the device is gone.

        """
        name = f"{folder}/current_link_speed"
        text = self.text(name)
        generation = _GENERATIONS.get(text.partition(" ")[0])
        if generation is None:
            raise ReadingMissing(f"{name} holds {text[:40]!r}")
        return generation

    def hwmon(self) -> str:
        """Name of the folder with the card's sensors, as an attribute's is.

        Raises:
            ReadingMissing: when the card has none.

        """
        if self._sensors is None or not self._sensors.is_dir():
            found = sorted((self.path / "device/hwmon").glob("hwmon*"))
            if not found:
                raise ReadingMissing("the driver shows no hwmon sensors")
            self._sensors = found[0]
        return f"device/hwmon/{self._sensors.name}"

    def labelled(self, kind: str, labels: Iterable[str]) -> str:
        """Path of the sensor input of ``kind`` (temp, freq, ...) with the first known label.

        Raises:
            ReadingMissing: when no sensor of the kind bears one of the labels.

        """
        key = (self.hwmon(), kind)
        if key not in self._labels:
            names = self.names(f"{key[0]}/{kind}*_label")
            self._labels[key] = {self.text(name): f"{name[: -len('label')]}input" for name in names}
        by_label = self._labels[key]
        wanted = list(labels)
        for label in wanted:
            if label in by_label:
                return by_label[label]
        raise ReadingMissing(f"no {kind} sensor labelled {' or '.join(wanted)}")

    def _reason(self, name: str, error: OSError) -> str:
        if error.errno in _GONE:
            raise DeviceLost(f"{self.path}: {error.strerror}") from error
        return _REASONS.get(error.errno or 0, f"{{name}}: {error.strerror}").format(name=name)

    def _optional(self, name: str) -> str:
        try:
            return self._read(name).decode(errors="replace").strip()
        except OSError:
            return ""

    def _read(self, name: str) -> bytes:
        """All bytes of an attribute; without the price of a text file, since samples read many."""
        descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY)
        try:
            parts: list[bytes] = []
            while part := os.read(descriptor, _PAGE):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)


def temperature_limits(card: Card, sensor: Callable[[], str]) -> tuple[float | None, float | None]:
    """Degrees at which hwmon calls a sensor's temperature critical, and an emergency.

    ``sensor`` gives the path of its input. None where the driver does not state the limit, or
    states one that no silicon has (kernel, Documentation/hwmon/sysfs-interface.rst: millidegrees).

    Raises:
        DeviceLost: when the card is gone.

    """

    def limit(name: str) -> float | None:
        low, high = _LIMITS_MILLIDEGREES
        found = optional(
            lambda: card.number_of(sensor().removesuffix("_input") + name, low=low, high=high)
        )
        return None if found is None else found / 1e3

    return limit("_crit"), limit("_emergency")


def cards(root: Path = SYSFS, *, vendor: str = "") -> list[Card]:
    """The cards of a PCI vendor (four hexadecimal digits), or all, in PCI order."""
    found: list[Card] = []
    for path in root.glob("card[0-9]*") if root.is_dir() else ():
        match = _CARD.fullmatch(path.name)
        if match:
            card = Card(path, int(match[1]))
            if not vendor or card.pci_id.startswith(f"{vendor}:"):
                found.append(card)
    return sorted(found, key=lambda card: (card.pci_address or "", card.number))


def gather(calls: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of the calls that gave one, and the reasons of those that did not.

    Raises:
        DeviceLost: when the device is gone.

    """
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, call in calls.items():
        try:
            values[name] = call()
        except ReadingMissing as reason:
            missing[name] = str(reason)
    return values, missing


def first(*calls: Callable[[], Value]) -> Value:
    """The value of the first call that gives one.

    Raises:
        ReadingMissing: with the reasons of all, when none does.
        DeviceLost: when the device is gone.

    """
    reasons: dict[str, None] = {}
    for call in calls:
        try:
            return call()
        except ReadingMissing as reason:
            reasons[str(reason)] = None
    raise ReadingMissing("; ".join(reasons))


def optional(call: Callable[[], Value]) -> Value | None:
    """The value of a call, or None where the attribute is missing."""
    try:
        return call()
    except ReadingMissing:
        return None
