"""JSON for programs: a snapshot as one object, and a stream of one object a line.

Each line has a ``type``: ``device`` (what a device is, before anything else is said of it),
``sample``, ``failure`` (why there is no sample), ``health`` and ``change``. A reader skips types
and fields that it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import HealthEvent
    from exo.gpu.vocabulary.inventory import DeviceChange
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

_ENCODER = msgspec.json.Encoder()


def state_object(state: DeviceState) -> dict[str, Any]:
    """One device: all that it is, its newest sample, health, cordon and leases; builtins only."""
    return {
        **state.device.to_dict(),
        "health": state.health.value,
        "health_reason": state.health_reason,
        "sample": state.sample.to_dict() if state.sample else None,
        "sample_age_seconds": state.sample_age_seconds,
        "leases": [lease.to_dict() for lease in state.leases],
        "measured_gflops": state.measured_gflops,
        "cordon": state.cordon.to_dict() if state.cordon else None,
    }


def snapshot_object(snapshot: Snapshot, *, at: float) -> dict[str, Any]:
    """A whole snapshot, taken at the Unix time ``at``; builtins only."""
    return {
        "at": at,
        "version": snapshot.version,
        "stale_after_seconds": snapshot.stale_after_seconds,
        "devices": [state_object(state) for state in snapshot.devices],
    }


def device_line(device: GPUDevice) -> bytes:
    """What a device is."""
    return _line("device", device)


def sample_line(sample: GPUMetrics) -> bytes:
    """A sample; what is not known is null, and ``missing_reasons`` says why."""
    return _line("sample", sample)


def failure_line(device_id: str, reason: str, *, at: float) -> bytes:
    """Why a device gave no sample at the Unix time ``at``."""
    return _line("failure", {"device_id": device_id, "timestamp": at, "reason": reason})


def health_line(event: HealthEvent) -> bytes:
    """A change of health."""
    return _line("health", event)


def change_line(change: DeviceChange, *, at: float) -> bytes:
    """A device that came, went or returned, noticed at the Unix time ``at``."""
    return _line("change", {"timestamp": at, **change.to_dict()})


def _line(kind: str, value: Any) -> bytes:
    """``{"type": kind, ...}`` and the line's end, without a dictionary in between."""
    body = _ENCODER.encode(value)
    return b'{"type":"' + kind.encode() + b'",' + body[1:] + b"\n"
