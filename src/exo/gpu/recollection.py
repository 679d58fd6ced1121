"""What is found now beside what was known: labels that stay, and what is missing; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from exo.gpu.merging import merge, same_hardware
from exo.gpu.registry import KnownDevice, Labelled, absent, label, label_order, remember
from exo.gpu.vocabulary.inventory import (
    ChangeKind,
    DeviceChange,
    DiscoveryReport,
    MissingDevice,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.inventory import Finding


class Recollection(msgspec.Struct, frozen=True):
    """The report under labels that stay, what is known from now on, and the labels by backend."""

    report: DiscoveryReport
    known: tuple[KnownDevice, ...]
    labels: dict[str, dict[str, str]]
    """Backend -> id that it gave -> label."""


def recollect(
    known: tuple[KnownDevice, ...],
    findings: Sequence[Finding],
    *,
    hidden: Collection[str],
    now: float,
) -> Recollection:
    """Name what was found by the labels it had.

    ``hidden`` are the backends of which the environment may hide devices: of those, none counts
    as missing. ``now`` is in Unix seconds.
    """
    found: dict[str, list[Labelled]] = {}
    taken = known
    for finding in findings:
        mine = found[finding.backend] = label(taken, finding.backend, finding.devices)
        taken = remember(taken, {finding.backend: mine}, now)
    renamed = tuple(
        msgspec.structs.replace(
            finding, devices=tuple(one.device for one in found[finding.backend])
        )
        for finding in findings
    )
    devices = merge(finding.devices for finding in renamed)
    gone = [one for one in absent(known, found) if one.backend not in hidden]
    return Recollection(
        DiscoveryReport(
            devices=devices, findings=renamed, missing=_missing(devices, renamed, gone)
        ),
        remember(known, found, now),
        {
            backend: {one.given_id: one.device.device_id for one in labelled}
            for backend, labelled in found.items()
        },
    )


def changes(
    before: DiscoveryReport, after: DiscoveryReport, gone: Mapping[str, GPUDevice]
) -> tuple[DeviceChange, ...]:
    """What came and went between two searches; a driver that gave no answer takes nothing away.

    ``gone`` are the devices, by hardware id, known to have been here and to be missing before.
    """
    old = {_who(device): device for device in before.devices}
    new = {_who(device): device for device in after.devices}
    silent = {finding.backend for finding in after.findings if finding.failed}
    lost = [
        DeviceChange(kind=ChangeKind.LOST, device=device)
        for who, device in old.items()
        if who not in new
        and device.backend not in silent
        and not any(same_hardware(device, other) for other in after.devices)
    ]
    came = [
        DeviceChange(
            kind=ChangeKind.RETURNED if device.hardware_id in gone else ChangeKind.ADDED,
            device=device,
        )
        for who, device in new.items()
        if who not in old and not any(same_hardware(device, other) for other in before.devices)
    ]
    return (*lost, *came)


class Comings:
    """What comes and goes from search to search; the first one is the standard of comparison."""

    def __init__(self, first: DiscoveryReport) -> None:
        self.standing = first
        """The last report, with what drivers that were silent then had found before."""
        self._gone = {one.device.hardware_id: one.device for one in first.missing}

    def take(self, after: DiscoveryReport) -> tuple[DeviceChange, ...]:
        """What changed with the next search; what a silent driver had found counts as there."""
        found = changes(self.standing, after, self._gone)
        for change in found:
            if change.kind is ChangeKind.LOST:
                self._gone[change.device.hardware_id] = change.device
            else:
                self._gone.pop(change.device.hardware_id, None)
        self.standing = standing(self.standing, after)
        return found


def standing(before: DiscoveryReport, after: DiscoveryReport) -> DiscoveryReport:
    """The later report, with what silent drivers had found before."""
    silent = {finding.backend for finding in after.findings if finding.failed}
    held = [
        device
        for device in before.devices
        if device.backend in silent
        and _who(device) not in {_who(other) for other in after.devices}
        and not any(same_hardware(device, other) for other in after.devices)
    ]
    return msgspec.structs.replace(after, devices=(*after.devices, *held))


def _who(device: GPUDevice) -> tuple[str, str | None]:
    return device.hardware_id, device.pci_address


def _missing(
    devices: Sequence[GPUDevice], findings: Sequence[Finding], gone: Sequence[KnownDevice]
) -> tuple[MissingDevice, ...]:
    """Those gone that no other backend sees either, each once."""
    lost = [one for one in gone if not any(same_hardware(one.device, own) for own in devices)]
    lost.sort(key=lambda one: label_order(one.device.device_id))
    groups: Mapping[str, list[GPUDevice]] = {
        finding.backend: [one.device for one in lost if one.backend == finding.backend]
        for finding in findings
    }
    by_label = {one.device.device_id: one for one in lost}
    reasons = {finding.backend: finding.reason for finding in findings}
    return tuple(
        MissingDevice(
            device=device,
            last_seen=by_label[device.device_id].last_seen,
            reason=reasons[by_label[device.device_id].backend] or "its driver no longer lists it",
        )
        for device in merge(groups.values())
    )
