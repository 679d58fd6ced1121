"""How the devices found are joined: what their drivers tell, completed by the PCI bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.backends import pci
from exo.gpu.vocabulary.links import Link

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from exo.gpu.vocabulary.device import GPUDevice


def placed(devices: Sequence[GPUDevice], sysfs: Path) -> tuple[GPUDevice, ...]:
    """The devices with NUMA node and display where the bus knows what their backends do not."""
    return tuple(_placed(device, sysfs) for device in devices)


def joined(
    devices: Sequence[GPUDevice], told: Iterable[Link], sysfs: Path | None
) -> tuple[Link, ...]:
    """One link for each ordered pair of which something is known, in the devices' order.

    ``told`` is what drivers say, which counts more than the place on the bus; links to devices
    that are not among these are left out.
    """
    names = {name: device.device_id for device in devices for name in _names(device)}
    known: dict[tuple[str, str], Link] = {}
    if sysfs is not None:
        known = {(link.source, link.target): link for link in pci.links(devices, sysfs)}
    for link in told:
        pair = names.get(link.source), names.get(link.target)
        if None in pair or pair[0] == pair[1]:
            continue
        source, target = str(pair[0]), str(pair[1])
        near = known.get((source, target))
        kind = link.kind or (near.kind if near else None)
        known[source, target] = msgspec.structs.replace(
            link, source=source, target=target, kind=kind
        )
    order = [device.device_id for device in devices]
    return tuple(
        known[source, target] for source in order for target in order if (source, target) in known
    )


def renamed(link: Link, names: Mapping[str, str]) -> Link:
    """The link between devices that now have these names, by the old ones."""
    source, target = names.get(link.source, link.source), names.get(link.target, link.target)
    return msgspec.structs.replace(link, source=source, target=target)


def _placed(device: GPUDevice, sysfs: Path) -> GPUDevice:
    node, display = device.numa_node, device.drives_display
    if node is None:
        node = pci.numa_node(device.pci_address, sysfs)
    if display is None:
        display = pci.drives_display(device.pci_address, sysfs)
    return msgspec.structs.replace(device, numa_node=node, drives_display=display)


def _names(device: GPUDevice) -> tuple[str, ...]:
    return device.device_id, *device.aliases
