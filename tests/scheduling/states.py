"""Device states as tests write them: sizes in GiB, one line a device."""

from __future__ import annotations

from typing import Any

from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.health import Cordon
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.settings import DeviceSettings
from exo.gpu.vocabulary.snapshot import DeviceState, Health, Snapshot

GIB = 2**30


def bytes_of(gib: float | None) -> int | None:
    return None if gib is None else round(gib * GIB)


def state(
    device_id: str,
    total: float | None = 24,
    used: float | None = 4,
    *,
    percent: float | None = 10,
    celsius: float | None = 60,
    sampled: bool = True,
    sleeping: bool = False,
    reserved: float | None = None,
    age: float = 1.0,
    health: Health = Health.OK,
    why: str = "",
    leases: tuple[Lease, ...] = (),
    cordon: Cordon | None = None,
    settings: DeviceSettings | None = None,
    device_class: DeviceClass = DeviceClass.HARDWARE,
    **facts: Any,
) -> DeviceState:
    device = GPUDevice(
        device_id,
        facts.pop("name", f"Card {device_id}"),
        "vendor",
        device_id.rpartition("/")[2].partition(":")[0],
        memory_bytes=bytes_of(total),
        device_class=device_class,
        **facts,
    )
    sample = GPUMetrics(
        device_id,
        1.0,
        bytes_of(used),
        bytes_of(total),
        percent,
        100.0,
        celsius,
        1000.0,
        memory_reserved_bytes=bytes_of(reserved),
    )
    if sleeping:
        sample = GPUMetrics(device_id, 1.0, sleeping=True)
    return DeviceState(
        device=device,
        sample=sample if sampled else None,
        sample_age_seconds=age if sampled else None,
        health=health,
        health_reason=why,
        leases=leases,
        cordon=cordon,
        settings=settings or DeviceSettings(),
    )


def lease(
    device_id: str = "cuda:0",
    held: float | None = None,
    *,
    before: float | None = None,
    pool: str = "",
    exclusive: bool = False,
    holder: str = "",
    pid: int = 0,
) -> Lease:
    return Lease(
        lease_id=f"lease on {device_id}",
        device_id=device_id,
        hardware_id=device_id,
        memory_pool=pool or device_id,
        memory_bytes=bytes_of(held),
        exclusive=exclusive,
        used_before_bytes=bytes_of(before),
        holder=holder,
        pid=pid,
    )


def snapshot(*states: DeviceState, version: int = 0) -> Snapshot:
    return Snapshot(states, version)
