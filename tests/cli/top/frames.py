"""Frames that tests of the live table show: made up, the same at every run."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from exo.gpu.coordination.top_source import TopFrame
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.health import Cordon, Health
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.process import DeviceUser
from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

GIB = 2**30
NOW = 1_772_366_700.0  # 2026-03-01 12:05 UTC


def state(device_id: str = "cuda:0", name: str = "NVIDIA H100 PCIe", **more: Any) -> DeviceState:
    """A device with these readings; ``device`` and ``readings`` take more fields of both."""
    device = GPUDevice(
        device_id,
        name,
        **{"vendor": "NVIDIA", "backend": "fake", "runtime": "cuda"} | more.pop("device", {}),
    )
    readings = more.pop("readings", {})
    sample = None if readings is None else GPUMetrics(device_id, NOW, **readings)
    age = None if sample is None else 0.5
    return DeviceState(device=device, sample=sample, sample_age_seconds=age, **more)


def lease(lease_id: str, device_id: str, **more: Any) -> Lease:
    facts = {"user": "alice", "command": "exo-gpu run", "taken_at": NOW - 600, "pid": 4000}
    return Lease(
        lease_id=lease_id,
        device_id=device_id,
        hardware_id=device_id,
        memory_pool=device_id,
        **facts | more,
    )


def user(device_id: str, pid: int, **more: Any) -> DeviceUser:
    facts = {"user": "alice", "since": NOW - 3600, "command": "python train.py"}
    return DeviceUser(device_id=device_id, pid=pid, **facts | more)


def wave(count: int, low: float, high: float, *, gap: bool = False) -> list[float | None]:
    """Values that go up and down, with a hole where asked."""
    middle, reach = (low + high) / 2, (high - low) / 2
    values: list[float | None] = [middle + reach * math.sin(place / 6) for place in range(count)]
    if gap:
        values[-12:-6] = [None] * 6
    return values


def history(count: int, watts: float, celsius: float, total: int) -> dict[str, list[float | None]]:
    return {
        "compute_utilization_percent": wave(count, 0, 100),
        "memory_used_bytes": wave(count, 0.1 * total, 0.8 * total),
        "power_watts": wave(count, 0.1 * watts, watts, gap=True),
        "temperature_celsius": wave(count, 30, celsius),
    }


BUSY = {
    "memory_used_bytes": 61 * GIB,
    "memory_total_bytes": 80 * GIB,
    "compute_utilization_percent": 97.0,
    "power_watts": 312.0,
    "power_limit_watts": 350.0,
    "temperature_celsius": 71.0,
    "clock_rate_mhz": 1755.0,
    "fan_percent": 45.0,
    "memory_temperature_celsius": 80.0,
    "uncorrected_errors": 0,
    "throttle_reasons": (),
}
CARDS = (
    state(
        readings=BUSY,
        leases=(lease("a", "cuda:0", memory_bytes=64 * GIB, holder="training run 7"),),
        device={
            "driver_version": "570.86.15",
            "hardware_id": "GPU-7d9f0c1e",
            "memory_bytes": 80 * GIB,
        },
    ),
    state(
        "cuda:1",
        "NVIDIA GeForce RTX 3060",
        readings={
            "memory_used_bytes": 1 * GIB,
            "memory_total_bytes": 12 * GIB,
            "compute_utilization_percent": 0.0,
            "power_watts": 15.0,
            "temperature_celsius": 38.0,
            "missing_reasons": {"clock_rate_mhz": "not supported by this GPU"},
        },
        cordon=Cordon(
            hardware_id="GPU-2", device_id="cuda:1", why="new fan", by="bob", since=NOW - 7200
        ),
        device={"hardware_id": "GPU-2"},
    ),
    state(
        "rocm:0",
        "AMD Radeon RX 7900 XTX",
        readings={
            "memory_used_bytes": 20 * GIB,
            "memory_total_bytes": 24 * GIB,
            "temperature_celsius": 93.0,
            "power_watts": 330.0,
            "throttle_reasons": ("thermal",),
        },
        health=Health.DEGRADED,
        health_reason="93 C, above 90 C since 12:01",
        device={"vendor": "AMD", "runtime": "rocm"},
    ),
    state(
        "xpu:0",
        "Intel Arc B580",
        readings=None,
        health=Health.FAILED,
        health_reason="it cannot be read: the driver gave no answer within 2 s",
        device={"vendor": "Intel", "runtime": "xpu", "memory_bytes": 12 * GIB},
    ),
    state(
        "cpu:0",
        "A processor with many cores",
        readings={
            "memory_used_bytes": 20 * GIB,
            "memory_total_bytes": 128 * GIB,
            "compute_utilization_percent": 12.0,
        },
        leases=(lease("b", "cpu:0"),),
        device={
            "vendor": "Somebody",
            "runtime": "cpu",
            "device_class": DeviceClass.HOST,
            "slots": 32,
        },
    ),
)
USERS = (
    user(
        "cuda:0",
        4711,
        memory_bytes=60 * GIB,
        lease_id="a",
        declared_bytes=64 * GIB,
        holder="training run 7",
    ),
    user(
        "cuda:0",
        812,
        user="gdm",
        command="/usr/bin/gnome-shell",
        memory_bytes=150 * 2**20,
        foreign=True,
        since=NOW - 5 * 86400,
    ),
    user(
        "cuda:0",
        5120,
        user=None,
        command=None,
        since=None,
        foreign=True,
        reason="no such process here: it ended, or is of another container",
    ),
    user(
        "cpu:0",
        4000,
        listed=False,
        lease_id="b",
        command="exo-gpu map",
        reason="leased; its processes are not told",
    ),
)
UNTOLD = {
    "xpu:0": "the driver gave no answer within 2.0 s",
    "cpu:0": "every process works on the host: leases only",
}
MACHINE = TopFrame(
    taken_at=NOW,
    snapshot=Snapshot(CARDS),
    histories={
        "cuda:0": history(300, 350, 71, 80 * GIB),
        "cuda:1": history(30, 170, 60, 12 * GIB),
        "rocm:0": history(90, 330, 93, 24 * GIB),
        "xpu:0": {},
        "cpu:0": {"compute_utilization_percent": wave(60, 0, 30)},
    },
    users=USERS,
    untold=UNTOLD,
    cadence_seconds=2.0,
)
NOTHING = TopFrame(taken_at=NOW, notes=("cuda: no NVIDIA driver", "vulkan: no driver is installed"))
UNKNOWN = TopFrame(
    taken_at=NOW,
    snapshot=Snapshot(
        (
            state(readings={}),
            state("cuda:1", "山田 " * 20 + "\x1b[31m", readings=None, device={"node": "rig2"}),
            state("a-node.with.a.very.long.name.example/cuda:11", readings=BUSY),
        )
    ),
    histories={"cuda:0": {"power_watts": [None, float("nan"), float("inf"), 3.0, None]}},
    notes=("leases are not shown: the store is read-only",),
    cadence_seconds=2.0,
)


def many(count: int) -> TopFrame:
    """So many devices, the busiest at the end."""
    states = tuple(
        state(f"cuda:{place}", readings=BUSY | {"power_watts": float(place)})
        for place in range(count)
    )
    return TopFrame(taken_at=NOW, snapshot=Snapshot(states))


def without(frame: TopFrame, device_id: str) -> TopFrame:
    """The same moment later, with one device gone."""
    left = tuple(one for one in frame.snapshot.devices if one.device.device_id != device_id)
    return msgspec.structs.replace(frame, snapshot=Snapshot(left))


class FixedSource:
    """Shows one frame until a test sets another."""

    def __init__(self, frame: TopFrame) -> None:
        self.now = frame

    def frame(self) -> TopFrame:
        return self.now
