"""Apple's backend: run here on a real driver of another kind, since no Mac is at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from exo.gpu.backends.metal import DEVICE_ID, MetalBackend
from exo.gpu.backends.webgpu import WebGPUDevice
from exo.gpu.factory import GPUBackendFactory
from exo.gpu.telemetry.probe import FIGURES
from exo.gpu.vocabulary.device import HOST_POOL, DeviceType
from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    InvalidHandle,
    NoSuchDevice,
    OutOfDeviceMemory,
)
from tests.backends.test_metal_macmon import SAMPLE, installed

SHADER = """
@group(0) @binding(0) var<storage, read> numbers: array<u32>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;
@compute @workgroup_size(1)
fn main(@builtin(global_invocation_id) at: vec3<u32>) { output[at.x] = numbers[at.x] * 2u; }
"""


@pytest.fixture
def backend(vulkan_environment: dict[str, str], tmp_path: Path) -> Iterator[MetalBackend]:
    """The backend as on a Mac, with a software driver in Metal's place."""
    del vulkan_environment
    made = MetalBackend(
        environ=installed(tmp_path, f"cat {SAMPLE}"),
        platform="darwin",
        open_device=WebGPUDevice,
    )
    anyio.run(made.initialize)
    yield made
    anyio.run(made.shutdown)


@pytest.mark.shows("metal", "finding", "fake")
def test_the_gpu_of_a_mac_shares_the_machines_memory(
    backend: MetalBackend, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: one device, named by its driver, whose memory is the machine's."""
    (device,) = backend.list_devices()
    shown_on(device.name, device.driver_version or "")
    assert (device.device_id, device.vendor, device.backend) == (DEVICE_ID, "Apple", "metal")
    assert (device.memory_pool, device.runtime) == (HOST_POOL, "metal")
    assert device.device_type is DeviceType.METAL
    assert device.memory_bytes
    assert backend.pinning([device], {}) == {}
    assert backend.hiding() == {}


@pytest.mark.shows("metal", "telemetry", "fake")
def test_readings_come_from_macmon_and_the_machine(
    backend: MetalBackend, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: macmon tells the GPU's readings, the machine its memory."""
    shown_on("recorded fields", "macmon 0.8.1")
    sample = backend.read(DEVICE_ID)
    assert (sample.power_watts, sample.clock_rate_mhz) == (6.25, 700)
    assert (sample.temperature_celsius, sample.compute_utilization_percent) == (47.5, 75)
    assert sample.memory_total_bytes == backend.require(DEVICE_ID).memory_bytes
    assert sample.memory_used_bytes
    assert sample.missing_reasons == {}
    with pytest.raises(NoSuchDevice):
        backend.read("metal:1")


@pytest.mark.parametrize(
    ("script", "reason"), [("sleep 60", "no sample within"), ("echo what", "printed 'what'")]
)
def test_a_macmon_that_misbehaves_leaves_the_memory(
    tmp_path: Path, vulkan_environment: dict[str, str], script: str, reason: str
) -> None:
    """Rule: without telemetry each reading is missing with the reason, and memory is still told."""
    del vulkan_environment
    made = MetalBackend(
        environ=installed(tmp_path, script),
        platform="darwin",
        open_device=WebGPUDevice,
        telemetry_seconds=0.3,
    )
    made.find()
    sample = made.read(DEVICE_ID)
    assert sample.memory_total_bytes
    assert sample.power_watts is None
    for reading in ("power_watts", "compute_utilization_percent", "temperature_celsius"):
        assert reason in sample.missing_reasons[reading]
    anyio.run(made.shutdown)


def test_its_speed_is_measured_by_its_own_shaders(backend: MetalBackend) -> None:
    """Rule: a Mac needs no Vulkan driver: every figure has an operation, which does its work."""
    speed = backend.speed(backend.require(DEVICE_ID))
    operations = speed.operations()
    assert (set(operations), speed.reasons) == (set(FIGURES), {})
    assert operations["fp32_gflops"](1) > 0
    speed.close()


@pytest.mark.shows("metal", "memory", "fake")
@pytest.mark.shows("metal", "compute", "fake")
def test_memory_and_shaders_go_through_wgpu(
    backend: MetalBackend, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: what is written is read back, copied and computed on; too much is refused."""
    shown_on(backend.list_devices()[0].name, "software driver in Metal's place")
    data = bytes(range(256)) * 64

    async def work() -> None:
        first = await backend.allocate(DEVICE_ID, len(data))
        second = await backend.allocate(DEVICE_ID, len(data))
        await backend.copy_to_device(data, first)
        await backend.copy_device_to_device(first, second, len(data))
        await backend.synchronize(DEVICE_ID)
        assert await backend.copy_from_device(second, 0, len(data)) == data
        await backend.deallocate(first)
        await backend.deallocate(second)
        with pytest.raises(InvalidHandle):
            await backend.deallocate(first)
        with pytest.raises(OutOfDeviceMemory):
            await backend.allocate(DEVICE_ID, 2**50)

    anyio.run(work)
    numbers = [1, 2, 3]
    packed = b"".join(number.to_bytes(4, "little") for number in numbers)
    output = backend.compute(DEVICE_ID, SHADER, [packed], len(packed), (3, 1, 1))
    assert [int.from_bytes(output[at : at + 4], "little") for at in (0, 4, 8)] == [2, 4, 6]


def test_elsewhere_there_is_no_metal() -> None:
    """Rule: off macOS the backend is absent with the reason, and opens nothing."""
    with pytest.raises(BackendUnavailable, match="this is linux"):
        MetalBackend(platform="linux").find()


def test_a_mac_without_a_metal_device_is_an_error(vulkan_environment: dict[str, str]) -> None:
    """Rule: a machine without an adapter of the kind says so (here none is Metal's)."""
    del vulkan_environment
    with pytest.raises(BackendError, match="no Metal adapter 0"):
        MetalBackend(platform="darwin").find()


def test_the_factory_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: it is known everywhere by name, and among all backends on macOS only."""
    assert isinstance(GPUBackendFactory.make("metal"), MetalBackend)
    monkeypatch.setattr("sys.platform", "darwin")
    assert list(GPUBackendFactory.make_all({})) == list(GPUBackendFactory.names())
    monkeypatch.setattr("sys.platform", "linux")
    assert "metal" not in GPUBackendFactory.make_all({})
