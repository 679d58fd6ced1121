"""Scripted devices: read anew at every call, strict about names, bounded in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from exo.gpu.backend import DeviceProcess, PinningAbility, ProcessAbility, TelemetryAbility
from exo.gpu.backends.fake import FakeBackend
from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    InvalidValue,
    NoSuchDevice,
    OutOfDeviceMemory,
    UnknownName,
)

CARD: dict[str, Any] = {
    "device_id": "cuda:0",
    "name": "Scripted card",
    "vendor": "NVIDIA",
    "backend": "fake",
    "runtime": "cuda",
    "hardware_id": "GPU-1",
    "memory_bytes": 1000,
    "sample": {"memory_total_bytes": 1000, "memory_used_bytes": 10, "temperature_celsius": 50},
}
OTHER = CARD | {"device_id": "rocm:0", "runtime": "rocm", "hardware_id": "GPU-2", "sample": {}}


def opened(*devices: dict[str, Any], **more: Any) -> FakeBackend:
    environ = more.pop("environ", {})
    backend = FakeBackend({"devices": list(devices), **more}, environ=environ)
    backend.find()
    return backend


def test_devices_and_samples_come_from_the_script() -> None:
    """Rule: fields are taken as written; readings that are not there are None with a reason."""
    backend = opened(CARD, OTHER)
    first, second = backend.list_devices()
    assert (first.device_id, first.runtime, second.runtime) == ("cuda:0", "cuda", "rocm")
    sample = backend.read("cuda:0")
    assert (sample.memory_used_bytes, sample.temperature_celsius) == (10, 50)
    assert sample.missing_reasons["power_watts"] == "not in the script"
    assert sample.timestamp > 1e9
    assert backend.read("rocm:0").memory_total_bytes is None
    assert isinstance(backend, TelemetryAbility)
    assert isinstance(backend, PinningAbility)


def test_a_changed_file_shows_at_the_next_reading(tmp_path: Path) -> None:
    """Rule: a script in a file is read at every call, so a demo can change while it runs."""
    path = tmp_path / "box.json"
    path.write_text(json.dumps({"devices": [CARD]}))
    backend = FakeBackend(path, environ={})
    backend.find()
    changed = CARD | {"sample": {"temperature_celsius": 90}}
    path.write_text(json.dumps({"devices": [changed]}))
    assert backend.read("cuda:0").temperature_celsius == 90
    path.write_text(json.dumps({"devices": []}))
    with pytest.raises(BackendError, match="no longer in the script"):
        backend.read("cuda:0")
    path.unlink()
    with pytest.raises(BackendUnavailable, match=r"box\.json"):
        backend.find()


def test_scripted_failures() -> None:
    """Rule: a device that fails has its reason; a script that fails makes the backend absent."""
    backend = opened(CARD | {"fail": "fell off the bus", "delay_seconds": 0.001}, OTHER)
    with pytest.raises(BackendError, match="fell off the bus"):
        backend.read("cuda:0")
    backend.read("rocm:0")
    with pytest.raises(BackendUnavailable, match="no driver"):
        opened(fail="no driver", delay_seconds=0.001)


@pytest.mark.parametrize(
    ("script", "error", "name"),
    [
        ([], InvalidValue, "script"),
        ({}, InvalidValue, "devices"),
        ({"devices": [], "divices": []}, UnknownName, "did you mean 'devices'"),
        ({"devices": ["card"]}, InvalidValue, "device"),
        ({"devices": [CARD | {"memory": 5}]}, UnknownName, "memory"),
        ({"devices": [CARD | {"sample": {"temp": 5}}]}, UnknownName, "temp"),
        ({"devices": [CARD | {"memory_bytes": -5}]}, ValueError, "memory_bytes"),
        ({"devices": [{"device_id": "cuda:0"}]}, ValueError, "name"),
    ],
)
def test_a_script_with_a_flaw_is_refused(script: Any, error: type[Exception], name: str) -> None:
    """Rule: an unknown name or an impossible value stops the program, named."""
    with pytest.raises(error, match=name):
        FakeBackend(script, environ={}).find()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["cuda:0", "rocm:0"]),
        ("GPU-2", ["rocm:0"]),
        ("GPU-1,GPU-2", ["cuda:0", "rocm:0"]),
        ("", []),
    ],
)
def test_the_inherited_list_is_the_universe(visible: str | None, expected: list[str]) -> None:
    """Rule: pinning and hiding work as they do for real vendors, and never widen."""
    environ = {} if visible is None else {"EXO_GPU_FAKE_VISIBLE": visible}
    backend = opened(CARD, OTHER, environ=environ)
    assert [device.device_id for device in backend.list_devices()] == expected
    for device in opened(CARD, OTHER).list_devices():
        if device.device_id in expected:
            pinned = backend.pinning([device], environ)
            assert pinned == {"EXO_GPU_FAKE_VISIBLE": device.hardware_id}
        else:
            with pytest.raises(BackendError, match="not among"):
                backend.pinning([device], environ)
    assert backend.hiding() == {"EXO_GPU_FAKE_VISIBLE": ""}


def test_memory_is_bounded_by_the_scripted_size() -> None:
    """Rule: a card of 1,000 bytes holds 1,000 bytes, and what it holds can be read."""
    backend = opened(CARD)

    async def fill() -> None:
        handle = await backend.allocate("cuda:0", 600)
        with pytest.raises(OutOfDeviceMemory, match="cuda:0"):
            await backend.allocate("cuda:0", 401)
        await backend.copy_to_device(b"abc", handle, 10)
        assert await backend.copy_from_device(handle, 10, 3) == b"abc"
        with pytest.raises(NoSuchDevice, match="it has: cuda:0"):
            await backend.allocate("cuda:9", 1)

    anyio.run(fill)


def test_scripted_processes_are_listed() -> None:
    """Rule: a script may say who works on a device; without a word of it, nobody tells."""
    backend = opened(CARD | {"processes": [{"pid": 7, "memory_bytes": 5}, {"pid": 8}]}, OTHER)
    assert isinstance(backend, ProcessAbility)
    assert backend.processes("cuda:0") == [
        DeviceProcess(pid=7, memory_bytes=5),
        DeviceProcess(pid=8),
    ]
    with pytest.raises(BackendError, match="lists no processes"):
        backend.processes("rocm:0")
