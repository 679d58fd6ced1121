"""The cuda backend on real NVIDIA GPUs with their own drivers; skipped where there are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from exo.gpu.vocabulary.metrics import READINGS

LOOK = """
import json
import msgspec
from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.errors import BackendUnavailable
backend = CudaBackend()
try:
    devices = backend.find()
    reason = backend.remark or "the driver lists no GPU"
except BackendUnavailable as error:
    devices, reason = [], str(error)
print(json.dumps({
    "reason": reason,
    "devices": msgspec.to_builtins(devices),
    "samples": msgspec.to_builtins([backend.read(device.device_id) for device in devices]),
    "links": len(backend.links()) if devices else 0,
}))
"""

MOVE = """
import sys
import anyio
from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.errors import OutOfDeviceMemory
backend = CudaBackend()
async def main():
    await backend.initialize()
    name = sys.argv[1]
    data = bytes(range(256)) * 65536
    first = await backend.allocate(name, len(data))
    second = await backend.allocate(name, len(data))
    await backend.copy_to_device(data, first)
    await backend.copy_device_to_device(first, second, len(data))
    await backend.synchronize(name)
    assert await backend.copy_from_device(second, 0, len(data)) == data
    info = await backend.get_device_memory_info(name)
    try:
        await backend.allocate(name, info["total_bytes"] + 1)
    except OutOfDeviceMemory:
        print("equal, and no more than there is")
    await backend.shutdown()
anyio.run(main)
"""

SHOWN = """
from cuda.bindings import driver
driver.cuInit(0)
for place in range(driver.cuDeviceGetCount()[1] or 0):
    print(driver.cuDeviceGetUuid(driver.cuDeviceGet(place)[1])[1].bytes.hex())
"""


def ran(program: str, *arguments: str, **changes: str | None) -> str:
    """What a program prints in a fresh process: the fakes of other tests are not loaded there."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {name: value for name, value in changes.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def machine() -> dict[str, Any]:
    """What the real driver tells."""
    told = json.loads(ran(LOOK))
    if not told["devices"]:
        pytest.skip(f"no NVIDIA GPU here: {told['reason']}")
    return told


@pytest.fixture
def say(machine: dict[str, Any], shown_on: Callable[[str, str], None]) -> None:
    """Says on what this was shown."""
    models = "; ".join(sorted({device["name"] for device in machine["devices"]}))
    shown_on(models, str(machine["devices"][0]["driver_version"]))


@pytest.mark.shows("cuda", "finding", "hardware")
def test_real_gpus_are_found(machine: dict[str, Any], say: None) -> None:
    """Rule: each real GPU has an identity of NVIDIA's, memory and a driver."""
    identities = [device["hardware_id"] for device in machine["devices"]]
    assert len(set(identities)) == len(identities)
    for device in machine["devices"]:
        assert device["hardware_id"].startswith(("GPU-", "MIG-"))
        assert device["memory_bytes"] > 2**28
        assert device["driver_version"]


@pytest.mark.shows("cuda", "telemetry", "hardware")
def test_real_gpus_are_read(machine: dict[str, Any], say: None) -> None:
    """Rule: a real GPU gives its memory and temperature, and every absence has a reason."""
    for sample in machine["samples"]:
        assert 0 <= sample["memory_used_bytes"] <= sample["memory_total_bytes"]
        assert 0 < sample["temperature_celsius"] < 120
        absent = [name for name in READINGS if sample.get(name) is None]
        assert set(absent) <= set(sample["missing_reasons"])


@pytest.mark.shows("cuda", "memory", "hardware")
def test_real_memory_is_written_and_read(machine: dict[str, Any], say: None) -> None:
    """Rule: 16 MiB come back equal from each GPU, and more than it has is refused."""
    pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")
    for device in machine["devices"]:
        pinned = {"CUDA_VISIBLE_DEVICES": device["hardware_id"]}
        told = ran(MOVE, device["device_id"], **pinned)
        assert told == "equal, and no more than there is"


@pytest.mark.shows("cuda", "pinning", "hardware")
def test_real_children_are_pinned(machine: dict[str, Any], say: None) -> None:
    """Rule: CUDA shows a pinned child the GPU of that UUID, and a hidden one none."""
    pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")
    for device in machine["devices"]:
        digits = device["hardware_id"].partition("-")[2].replace("-", "")
        assert ran(SHOWN, CUDA_VISIBLE_DEVICES=device["hardware_id"]) == digits
    assert ran(SHOWN, CUDA_VISIBLE_DEVICES="-1") == ""
