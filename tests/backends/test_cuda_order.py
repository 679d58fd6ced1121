"""The right GPU: NVML and CUDA number devices differently, so only the UUID decides."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from exo.gpu.vocabulary.errors import OutOfDeviceMemory
from tests.backends.libcuda.opening import FAST, MIB, SLOW, child, cuda_library
from tests.backends.nvml.fake_nvml import GIB, H100, FakeNvml, cut, mig_uuid, uuid
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "cuda_library"]

pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")

SHOWN = """
from cuda.bindings import driver
driver.cuInit(0)
for place in range(driver.cuDeviceGetCount()[1] or 0):
    device = driver.cuDeviceGet(place)[1]
    print(driver.cuDeviceGetUuid(device)[1].bytes.hex(), end=" ")
"""


def digits(*uuids: str) -> str:
    return " ".join(name.partition("-")[2].replace("-", "") for name in uuids)


def test_the_fake_numbers_as_cuda_does(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: the fastest first unless told otherwise; lists of indices and prefixes cut at a flaw."""
    nvml.write(SLOW, FAST, SLOW)
    by_bus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for changes, expected in (
        ({}, digits(uuid(1), uuid(0), uuid(2))),
        (by_bus, digits(uuid(0), uuid(1), uuid(2))),
        ({"CUDA_VISIBLE_DEVICES": "0"}, digits(uuid(1))),
        ({"CUDA_VISIBLE_DEVICES": "0", **by_bus}, digits(uuid(0))),
        ({"CUDA_VISIBLE_DEVICES": "2,-1,0"}, digits(uuid(2))),
        ({"CUDA_VISIBLE_DEVICES": f"GPU-2f,nonsense,{uuid(0)}"}, digits(uuid(2))),
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
    ):
        assert child(nvml, cuda_library, SHOWN, **changes) == expected, changes


@pytest.mark.shows("cuda", "pinning", "fake")
def test_a_pinned_child_sees_its_gpu_and_no_other(
    nvml: FakeNvml, cuda_library: str, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: what CUDA shows a child pinned by us is the GPU of that UUID, whatever the order."""
    nvml.write(SLOW, FAST, SLOW, cut(H100, 3, {0: GIB, 1: GIB}))
    shown_on("scripted T4, H100 and MIG instances", "fake CUDA 13.0")
    backend = opened(nvml)
    for device in backend.list_devices():
        pinned = backend.pinning([device], {})
        assert child(nvml, cuda_library, SHOWN, **pinned) == digits(device.hardware_id)
    third, _, first = backend.list_devices()[:3]
    pinned = backend.pinning([first, third], {})
    assert child(nvml, cuda_library, SHOWN, **pinned) == digits(uuid(2), uuid(0))
    assert child(nvml, cuda_library, SHOWN, **backend.hiding()) == ""


def test_memory_lies_on_the_gpu_that_was_asked_for(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: with NVML's and CUDA's orders different, memory is taken from the GPU of that UUID."""
    nvml.write(SLOW, FAST | {"memory.total": 8 * MIB}, cut(H100, 2, {0: 32 * MIB}))
    program = """
backend = CudaBackend()
async def main():
    await backend.initialize()
    for device in backend.list_devices():
        try:
            await backend.allocate(device.device_id, 16 * 2**20)
            print(device.device_id, "has it")
        except ExoGpuError as error:
            print(device.device_id, type(error).__name__)
    await backend.shutdown()
anyio.run(main)
"""
    lines = child(nvml, cuda_library, program).splitlines()
    # CUDA shows no MIG instance beside whole GPUs: a process of its own must be pinned to it.
    assert lines == ["cuda:0 has it", "cuda:1 OutOfDeviceMemory", "cuda:2:0 BackendError"]
    pinned = child(nvml, cuda_library, program, CUDA_VISIBLE_DEVICES=mig_uuid(2, 0))
    assert pinned == "cuda:2:0 has it"


def test_a_gpu_without_uuid_is_found_by_its_place_on_the_bus(
    nvml: FakeNvml, cuda_library: str
) -> None:
    """Rule: where the UUID is no identity, the PCI address picks CUDA's device."""
    nvml.write(SLOW | {"memory.total": 8 * MIB}, FAST | {"uuid": uuid(0)})
    backend = opened(nvml, cuda_library=cuda_library)
    with pytest.raises(OutOfDeviceMemory):
        anyio.run(backend.allocate, "cuda:0", 16 * MIB)
    assert anyio.run(backend.allocate, "cuda:1", 16 * MIB).size_bytes == 16 * MIB
