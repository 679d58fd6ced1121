"""All that a choice may look at, taken at one moment."""

from __future__ import annotations

import msgspec

from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.health import Cordon, Health
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.settings import DeviceSettings

__all__ = ["STALE_AFTER_SECONDS", "DeviceState", "Health", "Snapshot"]

STALE_AFTER_SECONDS = 30.0
"""Age from which a sample says nothing about now; three cadences where those are longer."""


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """One device as it is known at the moment of the snapshot.

    ``sample_age_seconds`` counts from receipt on a monotonic clock; it is None exactly when
    there is no sample. ``leases`` are those alive on this device.
    """

    device: GPUDevice
    sample: GPUMetrics | None = None
    sample_age_seconds: float | None = None
    health: Health = Health.OK
    health_reason: str = ""
    health_since: float | None = None
    """When this health began, in Unix seconds; None where nobody watches."""
    leases: tuple[Lease, ...] = ()
    measured_gflops: float | None = None
    """FP32 speed that a probe measured under the present driver, in 10**9 a second."""
    cordon: Cordon | None = None
    """Why it is kept out of scheduling, or None."""
    settings: DeviceSettings = DeviceSettings()


class Snapshot(msgspec.Struct, frozen=True):
    """The devices known at one moment, in the order in which they were registered."""

    devices: tuple[DeviceState, ...]
    version: int = 0
    stale_after_seconds: float = STALE_AFTER_SECONDS

    umbrella: tuple[str, ...] = ()
    """Ids of the leases under which the asker itself works: their slot is the asker's already."""
