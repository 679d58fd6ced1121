"""The PCI bus as sysfs shows it: how far apart devices are, their NUMA nodes, their displays."""

from __future__ import annotations

import re
from itertools import permutations, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.links import Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exo.gpu.vocabulary.device import GPUDevice

SYSFS = Path("/sys")

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def links(devices: Sequence[GPUDevice], root: Path = SYSFS) -> list[Link]:
    """The nearest way between each ordered pair of devices whose places on the bus are known."""
    places = {
        device.device_id: place
        for device in devices
        if (place := _place(device.pci_address, root)) is not None
    }
    found: list[Link] = []
    for source, target in permutations(places, 2):
        kind = _kind(places[source], places[target], root)
        if kind is not None:
            found.append(Link(source=source, target=target, kind=kind))
    return found


def ids(address: str | None, root: Path = SYSFS) -> tuple[int, int] | None:
    """Numbers of a device's vendor and kind (``lspci -n``), or None where they are not told."""
    place = _place(address, root)
    if place is None:
        return None
    try:
        return int(_text(place / "vendor"), 16), int(_text(place / "device"), 16)
    except ValueError:
        return None


def numa_node(address: str | None, root: Path = SYSFS) -> int | None:
    """Number of the NUMA node nearest to a device; None where the kernel knows none (-1)."""
    place = _place(address, root)
    text = "" if place is None else _text(place / "numa_node")
    return int(text) if text.isdecimal() else None


def drives_display(address: str | None, root: Path = SYSFS) -> bool | None:
    """True where a screen is plugged in, or the firmware shows its pictures; None: not known.

    A card with connectors of which none is connected drives none. One without a DRM driver is
    known only where the firmware chose it (``boot_vga``).
    """
    place = _place(address, root)
    if place is None:
        return None
    cards = [path.name for path in (place / "drm").glob("card*") if "-" not in path.name]
    if cards:
        states = [
            _text(path) for card in cards for path in (root / "class/drm").glob(f"{card}-*/status")
        ]
        return "connected" in states
    return True if _text(place / "boot_vga") == "1" else None


def _kind(one: Path, other: Path, root: Path) -> LinkKind | None:
    """What the ways from the host to two devices have in common."""
    shared = [mine for mine, _ in takewhile(_equal, zip(one.parts, other.parts, strict=False))]
    if one.name.rpartition(".")[0] == other.name.rpartition(".")[0]:  # parts of one function, too
        return LinkKind.BOARD
    if any(_ADDRESS.fullmatch(part) for part in shared):
        return LinkKind.SWITCH
    if shared and shared[-1].startswith("pci"):
        return LinkKind.HOST_BRIDGE
    nodes = _text(one / "numa_node"), _text(other / "numa_node")
    if all(node.isdecimal() for node in nodes):
        return LinkKind.NUMA_NODE if nodes[0] == nodes[1] else LinkKind.SYSTEM
    # Machines with one node often number it -1.
    return LinkKind.NUMA_NODE if _text(root / "devices/system/node/online") == "0" else None


def _equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def _place(address: str | None, root: Path) -> Path | None:
    """The device's real folder, which lies below those of all bridges on the way to it."""
    link = root / "bus/pci/devices" / (address or "none")
    return link.resolve() if link.exists() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
