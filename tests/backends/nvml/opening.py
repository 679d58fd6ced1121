"""Opens the cuda backend on the fake library, and lets go of it after each test."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from exo.gpu.backends.cuda import CudaBackend
from tests.backends.nvml.fake_nvml import FakeNvml

_open: list[CudaBackend] = []


def opened(nvml: FakeNvml, *, cuda_library: str | None = None, **environ: str) -> CudaBackend:
    """A backend that has found the fake's devices; its sysfs lies beside their description."""
    backend = CudaBackend(
        environ=environ,
        library=nvml.library,
        cuda_library=cuda_library,
        sysfs=nvml.description.parent / "sys",
    )
    _open.append(backend)
    backend.find()
    return backend


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """NVML counts its users: each test leaves none behind."""
    yield
    while _open:
        anyio.run(_open.pop().shutdown)


def ids(backend: CudaBackend) -> list[str]:
    return [device.device_id for device in backend.list_devices()]
