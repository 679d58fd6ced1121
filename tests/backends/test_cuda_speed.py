"""What a probe times on NVIDIA GPUs, through the real cuda-bindings on a fake CUDA driver."""

from __future__ import annotations

import pytest

from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.telemetry.probe import probe_device
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError
from tests.backends.libcuda.opening import FAST, SLOW, cuda_library
from tests.backends.nvml.fake_nvml import FakeNvml
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "cuda_library"]

pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")


def two(nvml: FakeNvml, cuda_library: str) -> CudaBackend:
    """A slow and a fast GPU."""
    nvml.write(SLOW, FAST)
    return opened(nvml, cuda_library=cuda_library)


def test_copies_are_measured_and_the_memory_comes_back(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: copies to, from and within the GPU are timed; what needs a kernel says so."""
    backend = two(nvml, cuda_library)
    device = backend.require("cuda:1")
    before = backend._memory.room(device.hardware_id)
    speed = backend.speed(device)
    for operation in speed.operations().values():
        assert operation(20) == 20 * operation(1) > 0
    result = probe_device(device, speed, seconds=0.6)
    assert result.memory_gbps is not None
    assert result.memory_gbps.median > 0
    assert set(result.reasons) == {"fp32_gflops", "launch_seconds"}
    assert "Vulkan" in result.reasons["fp32_gflops"]
    speed.close()
    speed.close()
    assert backend._memory.room(device.hardware_id) == before


def test_a_gpu_without_room_is_a_reason(
    nvml: FakeNvml, cuda_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: when the second buffer is refused the first is given back, and the error is told."""
    backend = two(nvml, cuda_library)
    device = backend.require("cuda:1")
    before = backend._memory.room(device.hardware_id)
    take, taken = backend._memory.allocate, []

    def once(hardware_id: str, size_bytes: int) -> int:
        if taken:
            raise BackendError("no more")
        taken.append(take(hardware_id, size_bytes))
        return taken[0]

    monkeypatch.setattr(backend._memory, "allocate", once)
    with pytest.raises(BackendError, match="no more"):
        backend.speed(device)
    assert backend._memory.room(device.hardware_id) == before


def test_a_gpu_that_is_not_there_is_an_error(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: a UUID that CUDA does not have is an error with its words."""
    backend = two(nvml, cuda_library)
    with pytest.raises(BackendError):
        backend.speed(GPUDevice("cuda:9", "x", "NVIDIA", "cuda", hardware_id="GPU-none"))
