"""The PCI bus in sysfs: how far devices are apart, and which one a screen hangs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.gpu.backends import pci
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.links import LinkKind


class Bus:
    """A sysfs root with devices at the ends of paths of bridges."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices: list[GPUDevice] = []
        (root / "bus/pci/devices").mkdir(parents=True)

    def add(self, *way: str, **attributes: str) -> GPUDevice:
        """A device below ``pci0000:00`` and bridges, and the next free id for it."""
        folder = self.root.joinpath("devices", *way)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in attributes.items():
            (folder / name).write_text(f"{text}\n")
        (self.root / "bus/pci/devices" / way[-1]).symlink_to(folder)
        device = GPUDevice(f"gpu:{len(self.devices)}", "Card", "V", "x", pci_address=way[-1])
        self.devices.append(device)
        return device

    def card(self, device: GPUDevice, number: int, **connectors: str) -> None:
        """The device's DRM card with the states of its connectors."""
        real = (self.root / "bus/pci/devices" / str(device.pci_address)).resolve()
        for name, state in {"": "", **connectors}.items():
            folder = real / "drm" / (f"card{number}-{name}" if name else f"card{number}")
            folder.mkdir(parents=True)
            shown = self.root / "class/drm" / folder.name
            shown.parent.mkdir(parents=True, exist_ok=True)
            shown.symlink_to(folder)
            if state:
                (folder / "status").write_text(f"{state}\n")

    def kinds(self) -> dict[tuple[str, str], LinkKind | None]:
        return {
            (link.source[4:], link.target[4:]): link.kind
            for link in pci.links(self.devices, self.root)
        }


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def test_the_nearest_common_bridge_says_how_far_two_devices_are_apart(bus: Bus) -> None:
    """Rule: one card, one switch, one host bridge, one NUMA node, or across the machine."""
    port = ("pci0000:00", "0000:00:01.0")
    bus.add(*port, "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", numa_node="0")
    bus.add(*port, "0000:01:00.0", "0000:02:08.0", "0000:04:00.0", numa_node="0")
    bus.add("pci0000:00", "0000:00:02.0", "0000:05:00.0", numa_node="0")
    bus.add("pci0000:40", "0000:40:01.0", "0000:41:00.0", numa_node="0")
    bus.add("pci0000:80", "0000:80:01.0", "0000:81:00.0", numa_node="1")
    bus.add("pci0000:80", "0000:80:01.0", "0000:81:00.1", numa_node="1")
    kinds = bus.kinds()
    assert len(kinds) == 30
    assert kinds["0", "1"] == kinds["1", "0"] == LinkKind.SWITCH
    assert kinds["0", "2"] == LinkKind.HOST_BRIDGE
    assert kinds["2", "3"] == LinkKind.NUMA_NODE
    assert kinds["0", "4"] == LinkKind.SYSTEM
    assert kinds["4", "5"] == LinkKind.BOARD


def test_without_numbered_nodes_only_a_machine_of_one_node_is_known(bus: Bus) -> None:
    """Rule: -1 is no node; what lies between two host bridges is then unknown, not "system"."""
    bus.add("pci0000:00", "0000:01:00.0", numa_node="-1")
    bus.add("pci0000:40", "0000:41:00.0", numa_node="-1")
    assert bus.kinds() == {}
    online = bus.root / "devices/system/node/online"
    online.parent.mkdir(parents=True)
    online.write_text("0-1\n")
    assert bus.kinds() == {}
    online.write_text("0\n")
    assert bus.kinds() == dict.fromkeys([("0", "1"), ("1", "0")], LinkKind.NUMA_NODE)


def test_devices_off_the_bus_have_no_links(bus: Bus) -> None:
    """Rule: a device without an address, or with one that sysfs lacks, is in no pair."""
    bus.add("pci0000:00", "0000:01:00.0")
    bus.devices.append(GPUDevice("cpu:0", "Host", "V", "cpu"))
    bus.devices.append(GPUDevice("gpu:9", "Card", "V", "x", pci_address="0000:99:00.0"))
    assert bus.kinds() == {}


def test_the_node_is_the_kernels_or_unknown(bus: Bus) -> None:
    """Rule: the number that the kernel gives; None for -1, no file and no device."""
    one = bus.add("pci0000:00", "0000:01:00.0", numa_node="1")
    two = bus.add("pci0000:00", "0000:02:00.0", numa_node="-1")
    three = bus.add("pci0000:00", "0000:03:00.0")
    nodes = [pci.numa_node(device.pci_address, bus.root) for device in (one, two, three)]
    assert nodes == [1, None, None]
    assert pci.numa_node(None, bus.root) is None


def test_a_screen_that_is_plugged_in_is_driven(bus: Bus) -> None:
    """Rule: a connected connector of the card's own says yes, only unconnected ones no."""
    shows = bus.add("pci0000:00", "0000:01:00.0")
    idle = bus.add("pci0000:00", "0000:02:00.0", boot_vga="1")
    bare = bus.add("pci0000:00", "0000:03:00.0")
    bus.card(shows, 1, DP="disconnected", HDMI="connected")
    bus.card(idle, 10, DP="disconnected")
    bus.card(bare, 2)
    displays = [pci.drives_display(device.pci_address, bus.root) for device in (shows, idle, bare)]
    assert displays == [True, False, False]


def test_without_a_drm_driver_the_firmwares_choice_counts(bus: Bus) -> None:
    """Rule: the boot console's card drives a display; of the others nothing is known."""
    console = bus.add("pci0000:00", "0000:01:00.0", boot_vga="1")
    other = bus.add("pci0000:00", "0000:02:00.0", boot_vga="0")
    assert pci.drives_display(console.pci_address, bus.root) is True
    assert pci.drives_display(other.pci_address, bus.root) is None
    assert pci.drives_display("0000:77:00.0", bus.root) is None


def test_ids_are_numbers_or_unknown(tmp_path: Path) -> None:
    """Rule: vendor and kind are read as hexadecimal; half of them, or no such place, is None."""
    bus = Bus(tmp_path)
    card = bus.add("pci0000:00", "0000:03:00.0", vendor="0x1002", device="0x744c")
    half = bus.add("pci0000:00", "0000:04:00.0", vendor="0x1002")
    assert pci.ids(card.pci_address, tmp_path) == (0x1002, 0x744C)
    assert pci.ids(half.pci_address, tmp_path) is None
    assert pci.ids("0000:05:00.0", tmp_path) is None
    assert pci.ids(None, tmp_path) is None
