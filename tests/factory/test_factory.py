"""Which backends there are, and how they are made."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from exo.gpu import factory
from exo.gpu.backend import GPUBackend
from exo.gpu.factory import GPUBackendFactory, detect_available_backends
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendUnavailable, UnknownName

CARD = {"device_id": "cuda:0", "name": "Card", "vendor": "NVIDIA", "backend": "fake"}


def test_names_are_in_the_order_of_preference() -> None:
    """Rule: vendors' own backends before Vulkan, the host last."""
    assert GPUBackendFactory.names() == (
        "cuda",
        "rocm",
        "level_zero",
        "metal",
        "vulkan",
        "cpu",
    )
    for name, backend in GPUBackendFactory.make_all({}).items():
        assert isinstance(backend, GPUBackend)
        assert backend.name == name
        assert backend.list_devices() == []


def test_an_unknown_backend_is_refused_with_the_near_spelling() -> None:
    """Rule: a name nobody knows stops the program and suggests one."""
    with pytest.raises(UnknownName, match="did you mean 'vulkan'"):
        GPUBackendFactory.make("vulcan")


def test_a_script_of_fake_devices_is_all_there_is(tmp_path: Path) -> None:
    """Rule: while EXO_GPU_FAKE is set no real driver is asked."""
    script = tmp_path / "box.json"
    script.write_text(json.dumps({"devices": [CARD]}))
    backends = GPUBackendFactory.make_all({"EXO_GPU_FAKE": str(script)})
    assert list(backends) == ["fake"]
    assert [device.device_id for device in backends["fake"].find()] == ["cuda:0"]


def test_the_cpu_is_always_available() -> None:
    """Rule: detection names what has a device here, the CPU last."""
    available = anyio.run(detect_available_backends)
    assert available[-1] == "cpu"
    assert set(available) <= set(GPUBackendFactory.names())


def test_a_named_backend_is_initialised() -> None:
    """Rule: create_backend hands out a backend whose devices are known."""
    backend = anyio.run(GPUBackendFactory.create_backend, "cpu")
    assert [device.device_id for device in backend.list_devices()] == ["cpu:0"]


def test_the_first_backend_with_a_device_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: without a name the best backend that has a device is taken; none is an error."""
    script = tmp_path / "box.json"
    script.write_text(json.dumps({"devices": [CARD]}))
    monkeypatch.setenv("EXO_GPU_FAKE", str(script))
    assert anyio.run(GPUBackendFactory.create_backend).name == "fake"
    assert anyio.run(detect_available_backends) == ["fake"]
    script.write_text(json.dumps({"devices": []}))
    with pytest.raises(BackendUnavailable, match="no backend has a device"):
        anyio.run(GPUBackendFactory.create_backend)


class Empty(GPUBackend):
    """A driver that opens and has no device."""

    name = "empty"
    closed = 0

    def find(self) -> list[GPUDevice]:
        return []

    async def shutdown(self) -> None:
        self.closed += 1


def test_what_was_opened_in_vain_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a driver that is only looked at is shut down, whether or not it has a device."""
    empty, cpu = Empty(), GPUBackendFactory.make("cpu")
    both = {"empty": empty, "cpu": cpu}
    monkeypatch.setattr(GPUBackendFactory, "make_all", classmethod(lambda _, environ=None: both))
    assert anyio.run(detect_available_backends) == ["cpu"]
    assert empty.closed == 1
    assert anyio.run(GPUBackendFactory.create_backend) is cpu
    assert (empty.closed, len(cpu.list_devices())) == (2, 1)


class Breaks(GPUBackend):
    """A driver whose binding breaks in a way that nobody foresaw."""

    name = "breaks"

    def find(self) -> list[GPUDevice]:
        raise KeyError("libamd_smi.so")


class Hangs(GPUBackend):
    """A driver that never answers."""

    name = "hangs"

    def __init__(self, release: object) -> None:
        super().__init__()
        self.release = release

    def find(self) -> list[GPUDevice]:
        self.release.wait()
        return []


def test_a_broken_or_hanging_backend_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: whatever one driver does, the next is asked, and nothing waits for ever."""
    import threading

    release = threading.Event()
    cpu = GPUBackendFactory.make("cpu")
    mixed = {"breaks": Breaks(), "hangs": Hangs(release), "cpu": cpu}
    monkeypatch.setattr(GPUBackendFactory, "make_all", classmethod(lambda _, environ=None: mixed))
    monkeypatch.setattr(factory, "FIND_SECONDS", 0.2)
    try:
        assert anyio.run(detect_available_backends) == ["cpu"]
        assert anyio.run(GPUBackendFactory.create_backend) is cpu
    finally:
        release.set()
