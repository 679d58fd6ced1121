"""The fake is judged by others: programs that know the real library run on it unchanged."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.nvml.fake_nvml import GIB, H100, T4, VARIABLE, FakeNvml, cut, uuid


def told(nvml: FakeNvml, program: str, *arguments: str) -> str:
    """What a program prints on the fake; skipped where it is not installed."""
    if importlib.util.find_spec(program) is None:
        pytest.skip(f"{program} is not installed: pip install {program}")
    environ = {VARIABLE: str(nvml.description), "LD_LIBRARY_PATH": str(Path(nvml.library).parent)}
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_gpustat_reads_the_fake(nvml: FakeNvml) -> None:
    """Rule: gpustat sees the same GPUs with the same figures as we do."""
    nvml.write(H100 | {"processes": f"{os.getpid()}:{GIB}", "graphics": ""}, T4)
    first, second = json.loads(told(nvml, "gpustat", "--json"))["gpus"]
    assert (first["uuid"], second["uuid"]) == (uuid(0), uuid(1))
    assert (first["name"], first["temperature.gpu"]) == ("NVIDIA H100 PCIe", 55)
    assert (first["memory.used"], first["memory.total"]) == (10 * 1024, 80 * 1024)
    assert (first["utilization.gpu"], first["power.draw"]) == (37, 123)
    assert [row["pid"] for row in first["processes"]] == [os.getpid()]


def test_nvitop_reads_the_fake(nvml: FakeNvml) -> None:
    """Rule: nvitop shows every GPU of the fake, MIG instances included, and complains of nothing."""
    nvml.write(H100 | {"processes": "", "graphics": ""}, cut(H100, 1, {0: 10 * GIB}), T4)
    shown = told(nvml, "nvitop", "-1")
    for expected in ("H100 PCIe", "Tesla T4", "0000:01:00.0", "0000:03:00.0", "10240MiB", "55C"):
        assert expected in shown
    assert "ERROR" not in shown


def test_nvitop_in_the_same_process_disturbs_nothing(nvml: FakeNvml) -> None:
    """Rule: nvitop replaces functions of pynvml; memory is read all the same, reserved told apart."""
    if importlib.util.find_spec("nvitop") is None:
        pytest.skip("nvitop is not installed: pip install nvitop")
    nvml.write(H100)
    program = (
        "import nvitop\n"
        "from exo.gpu.backends.cuda import CudaBackend\n"
        f"backend = CudaBackend(environ={{}}, library={nvml.library!r})\n"
        "(device,), sample = backend.find(), backend.read('cuda:0')\n"
        "print(device.memory_bytes, sample.memory_used_bytes, sample.memory_reserved_bytes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {VARIABLE: str(nvml.description)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(80 * GIB), str(10 * GIB), str(GIB // 2)], done.stderr
