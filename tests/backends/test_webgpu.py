"""Opening adapters through wgpu: which one, and what each failure says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from exo.gpu.backends import webgpu
from exo.gpu.backends.webgpu import AdapterKey, WebGPUDevice
from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    DeviceLost,
    OutOfDeviceMemory,
)

LLVMPIPE = 0x10005
SHADER = """
@group(0) @binding(0) var<storage, read_write> output: array<u32>;
@compute @workgroup_size(1) fn main() { output[0] = NUMBERu; }
"""


@pytest.fixture
def device(vulkan_environment: dict[str, str]) -> WebGPUDevice:
    """Mesa's software driver."""
    import wgpu

    infos = [adapter.info for adapter in wgpu.gpu.enumerate_adapters_sync()]
    name = next(info["device"] for info in infos if info["vendor_id"] == LLVMPIPE)
    opened = WebGPUDevice(0, key=AdapterKey(LLVMPIPE, 0, name))
    yield opened
    opened.close()


def test_an_adapter_is_chosen_by_key(device: WebGPUDevice) -> None:
    """Rule: where several drivers are visible, vendor, device and name pick the adapter."""
    assert "llvmpipe" in device.name
    assert "Mesa" in device.driver
    with pytest.raises(
        BackendError, match=r"no Vulkan adapter 0 named Nonesuch \(there is: none\)"
    ):
        WebGPUDevice(0, key=AdapterKey(1, 2, "Nonesuch"))
    with pytest.raises(BackendError, match="no Vulkan adapter 99"):
        WebGPUDevice(99)


def test_a_piece_above_the_drivers_limit_is_refused(device: WebGPUDevice) -> None:
    """Rule: one piece of memory is at most what the driver says, and is not tried above."""
    with pytest.raises(OutOfDeviceMemory, match="in one piece"):
        device.create_buffer(device.largest_buffer_bytes + 1)
    with pytest.raises(OutOfDeviceMemory):
        device.compute(SHADER.replace("NUMBER", "1"), [], device.largest_buffer_bytes + 4)


def test_shaders_are_compiled_once_and_forgotten_in_time(
    device: WebGPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the cache of pipelines has a bound, drops the oldest, and every answer is right."""
    monkeypatch.setattr(webgpu, "_PIPELINES_KEPT", 2)
    for number in (1, 2, 1, 3, 2, 1):
        output = device.compute(SHADER.replace("NUMBER", str(number)), [], 4)
        assert int.from_bytes(output, "little") == number
        assert len(device._pipelines) <= 2


def test_a_shader_starts_on_buffers_that_stay(device: WebGPUDevice) -> None:
    """Rule: a dispatch works on the caller's own buffers, and repeated copies copy once or often."""
    first, second = device.create_buffer(64), device.create_buffer(64)
    device.dispatch(SHADER.replace("NUMBER", "7"), [first], (1, 1, 1))
    device.copy(first, second, 64, times=3)
    assert device.read(second, 0, 4) == (7).to_bytes(4, "little")
    with pytest.raises(BackendError, match="garbage"):
        device.dispatch("garbage", [first], (1, 1, 1))


def test_a_device_that_is_gone_is_lost(
    device: WebGPUDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule: after the device is gone every call raises DeviceLost; closing again is harmless."""
    device.close()
    with pytest.raises(DeviceLost, match="lost"):
        device.compute(SHADER.replace("NUMBER", "1"), [], 4)


def test_the_drivers_out_of_memory_is_ours(
    device: WebGPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: what wgpu calls out of memory is our OutOfDeviceMemory, a MemoryError too."""
    import wgpu

    def refuse(**_: object) -> None:
        raise wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(device._device, "create_buffer", refuse)
    with pytest.raises(MemoryError, match="Not enough memory"):
        device.create_buffer(16)


def test_without_wgpu_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: the extra is named in one line."""
    monkeypatch.setitem(sys.modules, "wgpu", None)
    with pytest.raises(BackendUnavailable, match=r"exo-gpu\[vulkan\]"):
        WebGPUDevice(0)


def test_nothing_is_printed(vulkan_environment: dict[str, str]) -> None:
    """Rule: opening a device prints nothing, session or none, and leaves the environment alone."""
    program = (
        "import os\n"
        "from exo.gpu.backends.webgpu import WebGPUDevice\n"
        "before = dict(os.environ)\n"
        "WebGPUDevice(0).synchronize()\n"
        "assert os.environ == before"
    )
    for mesa in ({}, {"NODEVICE_SELECT": "0"}):
        environ = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environ | mesa,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("", "")
    assert logging.getLogger("exo.gpu").level == logging.NOTSET


def test_a_write_of_many_pieces_arrives_wherever_it_begins(device: WebGPUDevice) -> None:
    """Rule: what goes in pieces through shared memory lands byte for byte, and touches no neighbour."""
    length = 2 * 16 * 2**20 + 5
    data = os.urandom(2**16) * (length // 2**16) + os.urandom(length % 2**16)
    buffer = device.create_buffer(length + 16)
    for offset in (0, 3, 8):
        device.write(buffer, 0, b"\x11" * 8)
        device.write(buffer, length + 8, b"\x22" * 8)
        device.write(buffer, offset, data)
        assert device.read(buffer, offset, length) == data
        assert device.read(buffer, 0, offset) == b"\x11" * offset
        if offset < 8:
            assert device.read(buffer, length + 8, 8) == b"\x22" * 8
    device.free(buffer)
