"""Clusters of devices as they are scripted: ``{"devices": [...]}``, a sample beside each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from exo.gpu.backends.fake import FakeBackend
from exo.gpu.vocabulary.errors import BackendUnavailable, InvalidValue, TraceError
from exo.gpu.vocabulary.metrics import GPUMetrics
from exo.gpu.vocabulary.snapshot import DeviceState


def read_cluster(path: Path) -> tuple[DeviceState, ...]:
    """The devices of a script, with what was read of each.

    Raises:
        TraceError: naming the file and the field.

    """
    backend = FakeBackend(path)
    try:
        devices = backend.find()
        states = tuple(
            DeviceState(
                device=device,
                sample=_at_zero(backend.read(device.device_id)),
                sample_age_seconds=0.0,
            )
            for device in devices
        )
    except (InvalidValue, BackendUnavailable) as error:
        raise TraceError(f"{path}: {error}") from error
    if not states:
        raise TraceError(f"{path}: there is no device in it")
    return states


def grown(states: Sequence[DeviceState], model: str, count: int) -> tuple[DeviceState, ...]:
    """The same cluster with so many more devices like the first of that name.

    Raises:
        InvalidValue: where there is none of that name.

    """
    like = next((one for one in states if model in one.device.name), None)
    if like is None:
        names = sorted({one.device.name for one in states})
        raise InvalidValue("model", model, f"part of one of {', '.join(names)}")
    return (*states, *(_copy(like, number) for number in range(count)))


def _copy(like: DeviceState, number: int) -> DeviceState:
    name = f"{like.device.device_id}+{number + 1}"
    hardware_id = f"{like.device.hardware_id}+{number + 1}"
    own = like.device.memory_pool == like.device.hardware_id
    device = msgspec.structs.replace(
        like.device,
        device_id=name,
        hardware_id=hardware_id,
        memory_pool=hardware_id if own else like.device.memory_pool,
        aliases=(),
    )
    sample = like.sample
    if sample is not None:
        sample = msgspec.structs.replace(sample, device_id=name)
    return msgspec.structs.replace(like, device=device, sample=sample)


def _at_zero(sample: GPUMetrics) -> GPUMetrics:
    """The sample without the time of reading it: the same file gives the same run."""
    return msgspec.structs.replace(sample, timestamp=0.0)
