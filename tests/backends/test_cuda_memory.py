"""Memory of NVIDIA GPUs through the real cuda-bindings on a fake CUDA driver."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from exo.gpu.backend import MemoryHandle
from exo.gpu.backends import cuda_memory, host
from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.errors import (
    AbilityMissing,
    BackendError,
    BackendUnavailable,
    DeviceLost,
    InvalidHandle,
    OutOfDeviceMemory,
)
from tests.backends.libcuda.opening import FAST, MIB, SLOW, child, cuda_library
from tests.backends.nvml.fake_nvml import GIB, H100, VARIABLE, FakeNvml, uuid
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "cuda_library"]

pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")


def two(nvml: FakeNvml, cuda_library: str, **changes: object) -> CudaBackend:
    """A slow and a fast GPU."""
    nvml.write(SLOW | changes, FAST)
    return opened(nvml, cuda_library=cuda_library)


@pytest.mark.shows("cuda", "memory", "fake")
@pytest.mark.parametrize("runner", ["asyncio", "trio"])
def test_what_is_written_is_read(
    nvml: FakeNvml, cuda_library: str, runner: str, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: bytes come back as they went, at any offset, from the GPU that they were given to."""
    backend = two(nvml, cuda_library)
    shown_on("scripted T4 and H100", "fake CUDA 13.0")
    data = random.Random(7).randbytes(MIB)

    async def round_trip() -> None:
        handle = await backend.allocate("cuda:1", MIB + 3)
        await backend.copy_to_device(data, handle, 3)
        await backend.copy_to_device(b"", handle)
        await backend.synchronize("cuda:1")
        assert await backend.copy_from_device(handle, 3, MIB) == data
        assert await backend.copy_from_device(handle, 100, 0) == b""
        await backend.deallocate(handle)

    anyio.run(round_trip, backend=runner)


def test_memory_is_copied_within_and_across_gpus(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: a copy on one GPU or between two gives the same bytes, with peer access or without."""
    backend = two(nvml, cuda_library, **{"peer.1": 1})
    data = bytes(range(256))

    async def copies() -> None:
        first = await backend.allocate("cuda:0", 256)
        second = await backend.allocate("cuda:0", 256)
        other = await backend.allocate("cuda:1", 256)
        await backend.copy_to_device(data, first)
        for source, target in ((first, second), (second, other), (other, first), (first, other)):
            await backend.copy_device_to_device(source, target, 256)
            assert await backend.copy_from_device(target, 0, 256) == data
        await backend.copy_device_to_device(first, other, 0)

    anyio.run(copies)


def test_peer_access_is_told_by_direction(
    nvml: FakeNvml, cuda_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: can, cannot and unknown differ for each ordered pair."""
    backend = two(nvml, cuda_library, **{"peer.1": 1})
    assert anyio.run(backend.peer_access, "cuda:0", "cuda:1") is True
    assert anyio.run(backend.peer_access, "cuda:1", "cuda:0") is False
    broken = nvml.description.with_suffix(".broken")
    broken.write_text("cuda.init=!100\n")
    other = opened(nvml, cuda_library=cuda_library)
    monkeypatch.setenv(VARIABLE, str(broken))
    assert anyio.run(other.peer_access, "cuda:0", "cuda:1") is None


def test_memory_is_counted_on_the_gpu_itself(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: more than the GPU has is refused, what is freed can be had again, and zero bytes too."""
    backend = two(nvml, cuda_library)

    async def fill() -> None:
        empty = await backend.allocate("cuda:0", 0)
        await backend.deallocate(empty)
        held = await backend.allocate("cuda:0", 40 * MIB)
        with pytest.raises(OutOfDeviceMemory):
            await backend.allocate("cuda:0", 40 * MIB)
        await backend.deallocate(await backend.allocate("cuda:1", 40 * MIB))
        await backend.deallocate(held)
        await backend.deallocate(await backend.allocate("cuda:0", 60 * MIB))

    anyio.run(fill)


def test_a_thousand_pieces_leave_nothing_behind(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: memory taken and given back does not add up."""
    backend = two(nvml, cuda_library)

    async def churn() -> None:
        for _ in range(1000):
            await backend.deallocate(await backend.allocate("cuda:1", MIB))
        await backend.deallocate(await backend.allocate("cuda:1", 64 * MIB))

    anyio.run(churn)


@pytest.mark.parametrize(
    ("field", "code", "kind"),
    [
        ("cuda.alloc", 2, OutOfDeviceMemory),
        ("cuda.alloc", 999, DeviceLost),
        ("cuda.context", 46, BackendError),
        ("cuda.info", 214, DeviceLost),
    ],
)
def test_what_the_driver_refuses_is_named(
    nvml: FakeNvml, cuda_library: str, field: str, code: int, kind: type[BackendError]
) -> None:
    """Rule: each error of CUDA has its own kind and its own name, and the other GPU works on."""
    backend = two(nvml, cuda_library, **{field: f"!{code}"})
    with pytest.raises(kind, match=rf"\({code}\)") as caught:
        anyio.run(backend.allocate, "cuda:0", MIB)
    assert type(caught.value) is kind
    assert anyio.run(backend.allocate, "cuda:1", MIB).size_bytes == MIB


@pytest.mark.parametrize(
    ("field", "code", "kind"),
    [
        ("cuda.write", 1, InvalidHandle),
        ("cuda.read", 400, InvalidHandle),
        ("cuda.copy", 220, DeviceLost),
        ("cuda.synchronize", 719, BackendError),
        ("cuda.free", 999, DeviceLost),
    ],
)
def test_every_operation_can_fail(
    nvml: FakeNvml, cuda_library: str, field: str, code: int, kind: type[BackendError]
) -> None:
    """Rule: the operation that CUDA refuses is an error; those before it were fine."""
    backend = two(nvml, cuda_library)

    async def operate() -> None:
        handle = await backend.allocate("cuda:0", 16)
        nvml.change(f"0.{field}", f"!{code}")
        with pytest.raises(kind, match=rf"\({code}\)"):
            await backend.copy_to_device(b"x" * 16, handle)
            await backend.copy_from_device(handle, 0, 16)
            await backend.copy_device_to_device(handle, handle, 16)
            await backend.synchronize("cuda:0")
            await backend.deallocate(handle)

    anyio.run(operate)


def test_a_gpu_lost_while_memory_is_used(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: a GPU that falls off the bus is lost for memory too, and shutdown still ends."""
    backend = two(nvml, cuda_library)
    handle = anyio.run(backend.allocate, "cuda:0", 16)
    nvml.change("0.cuda.lost_after", 0)
    with pytest.raises(DeviceLost):
        anyio.run(backend.copy_to_device, b"x", handle)
    anyio.run(backend.shutdown)
    anyio.run(backend.shutdown)


def test_handles_of_nobody(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: freed twice, made elsewhere or out of bounds is an error before CUDA hears of it."""
    backend = two(nvml, cuda_library)
    handle = anyio.run(backend.allocate, "cuda:0", 16)
    with pytest.raises(BackendError, match="reach beyond"):
        anyio.run(backend.copy_to_device, b"x" * 17, handle)
    anyio.run(backend.deallocate, handle)
    for call, arguments in (
        (backend.deallocate, (handle,)),
        (backend.copy_from_device, (handle, 0, 1)),
        (backend.copy_to_device, (b"x", MemoryHandle(device_id="cuda:0", size_bytes=1))),
    ):
        with pytest.raises(InvalidHandle):
            anyio.run(call, *arguments)


def test_an_address_that_cuda_does_not_know(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: CUDA's own "invalid value" for an address is an invalid handle."""
    nvml.write(SLOW)
    memory = cuda_memory.CudaMemory(cuda_library)
    address = memory.allocate(uuid(0), 16)
    memory.free(uuid(0), address)
    with pytest.raises(InvalidHandle, match="cuMemFree"):
        memory.free(uuid(0), address)
    memory.close()
    memory.close()


def test_an_integrated_gpu_takes_the_machines_memory(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: the pool of an integrated GPU is the machine's, whatever CUDA counts as free."""
    unified = {name: value for name, value in H100.items() if not name.startswith("memory")}
    nvml.write(unified | {"name": "NVIDIA GB10"})
    backend = opened(nvml, cuda_library=cuda_library)
    with pytest.raises(OutOfDeviceMemory):
        anyio.run(backend.allocate, "cuda:0", host.memory().total_bytes + 1)
    with pytest.raises(OutOfDeviceMemory, match=r"cuMemAlloc: FAKE_CUDA_ERROR_2 \(2\)"):
        anyio.run(backend.allocate, "cuda:0", 16)  # this fake has none at all


def test_memory_info_has_all_four_figures(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: total, used, available and reserved are told, in bytes."""
    nvml.write(H100)
    info = anyio.run(opened(nvml, cuda_library=cuda_library).get_device_memory_info, "cuda:0")
    assert info == {
        "total_bytes": 80 * GIB,
        "used_bytes": 10 * GIB,
        "reserved_bytes": GIB // 2,
        "available_bytes": 80 * GIB - 10 * GIB - GIB // 2,
    }


# What is missing


def test_without_the_binding(
    nvml: FakeNvml, cuda_library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: without cuda-bindings the reason says what to install."""
    backend = two(nvml, cuda_library)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(AbilityMissing, match=r"exo-gpu\[cuda\]"):
        anyio.run(backend.allocate, "cuda:0", 1)


def test_without_the_library(nvml: FakeNvml, tmp_path: Path) -> None:
    """Rule: a library that is not there is named."""
    backend = two(nvml, str(tmp_path / "libcuda.so.1"))
    with pytest.raises(BackendUnavailable, match="libcuda"):
        anyio.run(backend.allocate, "cuda:0", 1)


def test_a_cuda_that_does_not_start(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: why CUDA does not start is told in its own words."""
    nvml.write(SLOW, **{"cuda.init": "!803"})
    backend = opened(nvml, cuda_library=cuda_library)
    with pytest.raises(BackendUnavailable, match=r"does not start: cuInit: .*803"):
        anyio.run(backend.allocate, "cuda:0", 1)


def test_a_machine_without_cuda(nvml: FakeNvml) -> None:
    """Rule: GPUs are found and read without libcuda.so.1; memory says what to install."""
    nvml.write(SLOW)
    program = """
try:
    CudaMemory().allocate(sys.argv[0], 1)
except ExoGpuError as error:
    print(type(error).__name__, error)
"""
    told = child(nvml, None, program)
    assert told.startswith("BackendUnavailable CUDA does not start")
    assert "install NVIDIA's driver" in told


def test_cuda_does_not_survive_a_fork(nvml: FakeNvml, cuda_library: str) -> None:
    """Rule: a forked child is told so, at once, and the parent's memory stays as it was."""
    nvml.write(SLOW)
    program = """
memory = CudaMemory()
address = memory.allocate(os.environ["GPU"], 4)
memory.write(os.environ["GPU"], address, b"here")
if os.fork() == 0:
    try:
        memory.read(os.environ["GPU"], address, 4)
    except ExoGpuError as error:
        print(error, flush=True)
    memory.close()
    os._exit(0)
os.wait()
print(memory.read(os.environ["GPU"], address, 4).decode())
"""
    told = child(nvml, cuda_library, program, GPU=uuid(0)).splitlines()
    assert "does not survive a fork" in told[0]
    assert told[1] == "here"
