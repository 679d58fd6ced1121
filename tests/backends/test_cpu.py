"""The host's CPU: always there, with real memory and honest load."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from exo.gpu.backend import GPUBackend, MemoryHandle
from exo.gpu.backends.cpu import CPUBackend
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass, DeviceType, GPUDevice
from exo.gpu.vocabulary.errors import (
    AbilityMissing,
    BackendError,
    InvalidHandle,
    NoSuchDevice,
    OutOfDeviceMemory,
)

MIB = 2**20


@pytest.fixture
def backend() -> CPUBackend:
    made = CPUBackend()
    made.find()
    return made


@pytest.fixture
def tell(backend: CPUBackend, shown_on: Callable[[str, str], None]) -> Callable[[], None]:
    """Says that a test ran on this machine's processor."""
    device = backend.require("cpu:0")
    return lambda: shown_on(device.name, os.uname().sysname)


@pytest.mark.shows("cpu", "finding", "hardware")
def test_the_host_is_one_device_with_a_slot_per_core(
    backend: CPUBackend, tell: Callable[[], None]
) -> None:
    """Rule: the host has its class, runtime and pool, and as many slots as usable cores."""
    tell()
    (device,) = backend.list_devices()
    assert (device.device_id, device.backend, device.runtime) == ("cpu:0", "cpu", "cpu")
    assert (device.device_class, device.memory_pool) == (DeviceClass.HOST, HOST_POOL)
    assert device.device_type is DeviceType.CPU
    assert 1 <= device.slots <= (os.cpu_count() or 1)
    assert device.slots == device.compute_units
    assert 0 < (device.memory_available or 0) <= (device.memory_bytes or 0)
    assert device.name
    assert device.hardware_id == "cpu"


@pytest.mark.shows("cpu", "telemetry", "hardware")
def test_readings_of_this_machine(backend: CPUBackend, tell: Callable[[], None]) -> None:
    """Rule: load and memory are read; what the platform does not give is None with a reason."""
    tell()
    sample = backend.read("cpu:0")
    assert 0 <= (sample.compute_utilization_percent or 0) <= 100
    assert sample.compute_utilization_percent is not None
    assert 0 < (sample.memory_used_bytes or 0) < (sample.memory_total_bytes or 0)
    for name in ("power_watts", "temperature_celsius", "clock_rate_mhz"):
        assert (getattr(sample, name) is None) == (name in sample.missing_reasons)
    with pytest.raises(NoSuchDevice):
        backend.read("cpu:1")


def test_what_this_kernel_does_not_tell_is_none(tmp_path: Path) -> None:
    """Rule: load comes from the root's own counters; no sensor and no clock are None, not 0."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  0 0 0 100 0 0 0 0 0 0\ncpu0 0 0 0 100 0 0 0 0 0 0\n")
    (tmp_path / "proc/cpuinfo").write_text("model name\t: 6502\ncpu MHz\t\t: unknown\n")
    backend = CPUBackend(root=tmp_path)
    backend.find()
    sample = backend.read("cpu:0")
    assert sample.compute_utilization_percent == 100  # no idle time passed there at all
    for name in ("temperature_celsius", "clock_rate_mhz"):
        assert getattr(sample, name) is None
        assert name in sample.missing_reasons


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    """Rule: where the kernel shows no processor, the platform's name stands in."""
    (device,) = CPUBackend(root=tmp_path).find()
    assert device.name
    assert device.vendor


def test_names_come_from_cpuinfo(tmp_path: Path) -> None:
    """Rule: the kernel's model name and vendor are used, in the vendor's usual spelling."""
    (tmp_path / "proc").mkdir()
    text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM)\n\nprocessor\t: 1\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    (device,) = CPUBackend(root=tmp_path).find()
    assert (device.vendor, device.name) == ("Intel", "Intel(R) Core(TM)")


@pytest.mark.shows("cpu", "memory", "hardware")
def test_memory_comes_back_as_it_was_written(backend: CPUBackend, tell: Callable[[], None]) -> None:
    """Rule: written, copied and read bytes are equal; info and synchronize answer."""
    tell()
    data = os.urandom(2 * MIB)

    async def roundtrip() -> None:
        first = await backend.allocate("cpu:0", len(data))
        second = await backend.allocate("cpu:0", len(data) + 8)
        await backend.copy_to_device(data, first)
        await backend.copy_device_to_device(first, second, len(data))
        await backend.copy_to_device(b"tail", second, len(data))
        assert await backend.copy_from_device(second, 0, len(data)) == data
        assert await backend.copy_from_device(second, len(data), 8) == b"tail" + bytes(4)
        await backend.synchronize("cpu:0")
        info = await backend.get_device_memory_info("cpu:0")
        assert (info["total_bytes"] or 0) > (info["used_bytes"] or 0) > 0
        assert await backend.get_device_power_usage("cpu:0") is None
        await backend.deallocate(first)
        with pytest.raises(InvalidHandle):
            await backend.deallocate(first)
        with pytest.raises(BackendError, match="beyond"):
            await backend.copy_to_device(bytes(9), second, len(data))

    anyio.run(roundtrip)


def test_memory_is_never_more_than_the_machine_has_free(backend: CPUBackend) -> None:
    """Rule: promised but untouched memory counts, so twice three quarters are refused."""

    async def take() -> None:
        free = psutil.virtual_memory().available
        await backend.allocate("cpu:0", free * 3 // 4)
        with pytest.raises(OutOfDeviceMemory, match="asked"):
            await backend.allocate("cpu:0", free * 3 // 4)
        await backend.shutdown()
        await backend.shutdown()
        with pytest.raises(NoSuchDevice):
            await backend.allocate("cpu:0", 1)
        with pytest.raises(InvalidHandle):
            await backend.copy_from_device(MemoryHandle(device_id="cpu:0", size_bytes=1), 0, 1)

    anyio.run(take)


def test_what_the_operating_system_refuses_is_out_of_memory(
    backend: CPUBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a refusal of the kernel, as under ulimit, is our OutOfDeviceMemory."""
    from exo.gpu.backends import host_buffers

    def refuse(*_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(host_buffers.mmap, "mmap", refuse)
    with pytest.raises(OutOfDeviceMemory, match="refuses 16 bytes"):
        anyio.run(backend.allocate, "cpu:0", 16)


@pytest.mark.shows("cpu", "pinning", "hardware")
def test_the_cpu_needs_no_pinning(backend: CPUBackend, tell: Callable[[], None]) -> None:
    """Rule: every process has the CPU, so no variable pins or hides it."""
    tell()
    assert backend.pinning([backend.require("cpu:0")], {}) == {}
    assert backend.hiding() == {}


def test_an_ability_that_is_not_offered_is_named() -> None:
    """Rule: a backend without memory operations says so in words."""

    class Bare(GPUBackend):
        name = "bare"

        def find(self) -> list[GPUDevice]:
            return []

    async def ask() -> None:
        with pytest.raises(AbilityMissing, match="bare backend cannot allocate memory"):
            await Bare().allocate("bare:0", 1)

    anyio.run(ask)


def test_every_operation_of_a_probe_does_the_work_that_it_counts(backend: CPUBackend) -> None:
    """Rule: copies, products and calls are done, and twice the amount is twice the work."""
    speed = backend.speed(backend.require("cpu:0"))
    speed._source[:] = 3.0
    operations = speed.operations()
    for operation in operations.values():
        assert operation(2) == 2 * operation(1) > 0
    assert (speed._target == 3.0).all()
    assert (speed._product == 0.25 * len(speed._product)).all()
    assert set(speed.reasons) == {"host_to_device_gbps", "device_to_host_gbps"}
    speed.close()
    speed.close()
