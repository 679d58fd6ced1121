"""What a search for devices found: per backend, in all, and what was here before and is missing."""

from __future__ import annotations

from enum import StrEnum

from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.links import Link
from exo.gpu.vocabulary.messages import WireValue


class Finding(WireValue, frozen=True, kw_only=True):
    """What one backend found, or why it found nothing; ``seconds`` is how long it took."""

    backend: str
    devices: tuple[GPUDevice, ...] = ()
    reason: str = ""
    hint: str = ""
    """What to install or change."""
    seconds: float = 0.0
    failed: bool = False
    """True when the backend broke or hung, false when it is merely absent here."""
    hidden: tuple[GPUDevice, ...] = ()
    """Devices that are there, but that the environment keeps from this process."""


class MissingDevice(WireValue, frozen=True, kw_only=True):
    """A device that was here before: as it was last seen, when, and why it is not found now."""

    device: GPUDevice
    last_seen: float
    """Unix seconds."""
    reason: str


class DiscoveryReport(WireValue, frozen=True, kw_only=True):
    """All devices, each once: best class first, then in the order of backends and indices."""

    devices: tuple[GPUDevice, ...] = ()
    findings: tuple[Finding, ...] = ()
    """One per backend, before devices seen twice were merged."""
    missing: tuple[MissingDevice, ...] = ()
    """Devices that were here before and were not found, unless the environment hides some."""
    links: tuple[Link, ...] = ()
    """How the devices are joined, for each ordered pair of which something is known."""


class ChangeKind(StrEnum):
    """What became of a device."""

    ADDED = "added"
    """It was never seen before."""
    LOST = "lost"
    RETURNED = "returned"
    """It was seen before, and was missing."""


class DeviceChange(WireValue, frozen=True, kw_only=True):
    """A device that came or went, as it was last seen."""

    kind: ChangeKind
    device: GPUDevice


def topology_matrix(report: DiscoveryReport) -> tuple[tuple[Link | None, ...], ...]:
    """The way from each device (row) to each (column), in the report's order; None: not known."""
    known = {(link.source, link.target): link for link in report.links}
    ids = [device.device_id for device in report.devices]
    return tuple(tuple(known.get((source, target)) for target in ids) for source in ids)
