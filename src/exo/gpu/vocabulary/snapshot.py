"""All that a choice may look at, taken at one moment."""

from __future__ import annotations

from functools import cached_property

import msgspec

from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.forecast import Finish
from exo.gpu.vocabulary.health import Cordon, Health
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.links import Link, Route
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.process import RunningProcess
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
    warm_keys: tuple[str, ...] = ()
    """Affinity keys for which a warm worker waits on the device."""
    finish: Finish | None = None
    """When the work that is asked about would be done here; None where nothing tells."""
    foreign: tuple[RunningProcess, ...] = ()
    """Processes that work on it under nobody's lease, where somebody looked for them."""
    foreign_untold: str = ""
    """Why there may be more of them; empty where nobody looked, or where all are known."""


class Snapshot(msgspec.Struct, frozen=True, dict=True):
    """The devices known at one moment, in the order in which they were registered."""

    devices: tuple[DeviceState, ...]
    version: int = 0
    stale_after_seconds: float = STALE_AFTER_SECONDS

    umbrella: tuple[str, ...] = ()
    """Ids of the leases under which the asker itself works: their slot is the asker's already."""
    links: tuple[Link, ...] = ()
    """How the devices are joined, where that is known, by device id."""
    routes: tuple[Route, ...] = ()
    """How the nodes reach each other, where that was measured."""
    unseen: tuple[Lease, ...] = ()
    """Leases on devices of this machine (the node without a name) that are not among the devices,
    as under an inherited restriction: they count where a pool or the machine is shared."""

    @cached_property
    def memory(self) -> dict[int, tuple[DeviceState, tuple[int | None, int | None, int | None]]]:
        """What was worked out of a device's memory already, with the device, by its ``id``."""
        return {}

    @cached_property
    def pools(self) -> dict[tuple[str, str], tuple[DeviceState, ...]]:
        """The devices of each (node, memory pool)."""
        pools: dict[tuple[str, str], list[DeviceState]] = {}
        for state in self.devices:
            pools.setdefault((state.device.node, state.device.memory_pool), []).append(state)
        return {key: tuple(members) for key, members in pools.items()}

    @cached_property
    def hosts(self) -> dict[str, DeviceState]:
        """The processor of each machine, by node; the one with the first id where there are two."""
        hosts: dict[str, DeviceState] = {}
        for state in self.devices:
            device = state.device
            if device.device_class is DeviceClass.HOST:
                known = hosts.setdefault(device.node, state)
                hosts[device.node] = min(known, state, key=lambda one: one.device.device_id)
        return hosts

    @cached_property
    def host_leases(self) -> dict[str, tuple[Lease, ...]]:
        """The leases that hold cores or memory of their machine beside a device, by node."""
        found: dict[str, list[Lease]] = {}
        everywhere = [(state.device.node, state.leases) for state in self.devices if state.leases]
        for node, leases in (*everywhere, ("", self.unseen)):
            for lease in leases:
                if lease.host_cpus or lease.host_memory_bytes:
                    found.setdefault(node, []).append(lease)
        return {node: tuple(leases) for node, leases in found.items()}
