"""The fake CUDA driver as a fixture, two unlike GPUs, and children that find both fakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.libcuda import fake_cuda
from tests.backends.nvml.fake_nvml import T4, VARIABLE, FakeNvml

MIB = 2**20
# CUDA's order is by speed, NVML's by the bus: the second GPU is CUDA's first.
SLOW = T4 | {"cuda.speed": 1, "memory.total": 64 * MIB, "memory.reserved": 0}
FAST = SLOW | {"name": "NVIDIA H100 PCIe", "cuda.speed": 9}

CHILD = """
import os, sys
import anyio
from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.backends.cuda_memory import CudaMemory
from exo.gpu.vocabulary.errors import ExoGpuError
"""


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fake CUDA driver."""
    try:
        return str(fake_cuda.build(tmp_path_factory.mktemp("cuda")))
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")


def child(nvml: FakeNvml, cuda_library: str | None, program: str, **changes: str | None) -> str:
    """What a program prints in a process that finds both fakes as it would find the drivers."""
    folders = [Path(nvml.library).parent]
    if cuda_library is not None:
        folders.append(Path(cuda_library).parent)
    environ = os.environ | {
        VARIABLE: str(nvml.description),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD + program],
        env=environ | {name: value for name, value in changes.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
