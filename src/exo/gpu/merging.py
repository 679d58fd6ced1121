"""Which of the devices that several backends found are one piece of hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import Finding


def merge(groups: Iterable[Sequence[GPUDevice]]) -> tuple[GPUDevice, ...]:
    """Each physical device once, under the first group (one per backend) that holds it.

    Best class first, then in the order of groups.
    """
    merged: list[GPUDevice] = []
    for group in groups:
        alone = list(range(len(merged)))  # a card is the twin of one device per backend at most
        for device in group:
            place = _twin(device, merged, alone)
            if place is None:
                merged.append(device)
            else:
                merged[place] = _joined(merged[place], device)
                alone.remove(place)
    return tuple(sorted(merged, key=lambda device: device.device_class.rank))


def without_hidden(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings without the cards that the environment hides from another backend.

    ``CUDA_VISIBLE_DEVICES`` of Slurm or Docker is the universe: a card outside it must not come
    back through its Vulkan driver.
    """
    hidden = [device for finding in findings for device in finding.hidden]
    if not hidden:
        return tuple(findings)
    return tuple(_less(finding, hidden) for finding in findings)


def _less(finding: Finding, hidden: Sequence[GPUDevice]) -> Finding:
    kept: list[GPUDevice] = []
    notes = [finding.reason] if finding.reason else []
    for device in finding.devices:
        twin = next((one for one in hidden if same_hardware(device, one)), None)
        if twin is None:
            kept.append(device)
        else:
            notes.append(f"{device.name} is {twin.device_id}, which the environment hides")
    return msgspec.structs.replace(finding, devices=tuple(kept), reason="; ".join(notes))


def same_hardware(one: GPUDevice, other: GPUDevice) -> bool:
    """True when two backends' devices are one, by UUID, else by place on the PCI bus."""
    return _same_uuid(one, other) or _same_address(one, other)


def shared_identities(devices: Sequence[GPUDevice]) -> str:
    """Which devices of one backend bear the same identity, in words; empty for none."""
    by_identity: dict[str, list[str]] = {}
    for device in devices:
        by_identity.setdefault(device.hardware_id, []).append(device.device_id)
    return "; ".join(
        f"{' and '.join(names)} bear the same identity {identity}: they are told apart by place, "
        "and cannot be pinned apart by it"
        for identity, names in by_identity.items()
        if len(names) > 1
    )


def _twin(device: GPUDevice, known: Sequence[GPUDevice], places: Sequence[int]) -> int | None:
    """Place of the one device of another backend that is the same piece of hardware."""
    for same in (_same_uuid, _same_address):
        matches = [place for place in places if same(device, known[place])]
        if len(matches) == 1:
            return matches[0]
    return None


def _same_uuid(one: GPUDevice, other: GPUDevice) -> bool:
    if one.pci_address and other.pci_address and one.pci_address != other.pci_address:
        return False
    return _uuid(one) == _uuid(other) != ""


def _same_address(one: GPUDevice, other: GPUDevice) -> bool:
    return one.pci_address is not None and one.pci_address == other.pci_address


def _uuid(device: GPUDevice) -> str:
    """The 32 hexadecimal digits of a UUID, however the vendor writes it; else empty."""
    digits = device.hardware_id.lower().removeprefix("gpu-").replace("-", "")
    return digits if len(digits) == 32 and not set(digits) - set("0123456789abcdef") else ""


def _joined(primary: GPUDevice, twin: GPUDevice) -> GPUDevice:
    """The first backend's view, completed by what only the other one knows."""
    facts = {
        field: getattr(twin, field)
        for field in primary.__struct_fields__
        if getattr(primary, field) is None
    }
    aliases = (*primary.aliases, twin.device_id, *twin.aliases)
    return msgspec.structs.replace(primary, **facts, aliases=aliases)
