"""Pinning as a real child sees it: through CUDA's library, and through the Vulkan loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.execution.pinning import apply_changes
from exo.gpu.nodes.local import LocalNode
from tests.backends.conftest import nvml, nvml_library, shown_on
from tests.backends.libcuda.opening import FAST, SLOW, cuda_library
from tests.backends.nvml.fake_nvml import VARIABLE, FakeNvml, uuid
from tests.backends.nvml.opening import closed, opened
from tests.backends.vulkan import twin_driver

__all__ = ["closed", "cuda_library", "nvml", "nvml_library", "shown_on"]

LISTS = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")

# What the driver itself lists, in its own order.
CUDA_LISTS = """
from cuda.bindings import driver
driver.cuInit(0)
for place in range(driver.cuDeviceGetCount()[1] or 0):
    print(driver.cuDeviceGetUuid(driver.cuDeviceGet(place)[1])[1].bytes.hex())
"""

VULKAN_LISTS = """
import vulkan
try:
    instance = vulkan.vkCreateInstance(vulkan.VkInstanceCreateInfo(), None)
except vulkan.VkErrorIncompatibleDriver:
    raise SystemExit
for card in vulkan.vkEnumeratePhysicalDevices(instance):
    print(vulkan.vkGetPhysicalDeviceProperties(card).deviceName)
"""

# What our own worker does: finds the one device that it has, and opens it.
WORKER = """
import anyio
from exo.gpu.backends.vulkan import VulkanGPUBackend
async def main():
    backend = VulkanGPUBackend()
    await backend.initialize()
    (device,) = backend.list_devices()
    handle = await backend.allocate(device.device_id, 4096)
    await backend.deallocate(handle)
    await backend.shutdown()
    print(device.hardware_id)
anyio.run(main)
"""


def child(program: str, environ: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.shows("cuda", "pinning", "fake")
def test_cuda_shows_a_pinned_child_the_gpu_of_that_uuid(
    nvml: FakeNvml, cuda_library: str, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: NVML counts by the bus and CUDA by speed; the child of a node gets the card it leased."""
    pytest.importorskip("cuda.bindings.driver", reason="pip install 'exo-gpu[cuda]'")
    nvml.write(SLOW, FAST, SLOW)
    shown_on("scripted T4 and H100", "fake CUDA 13.0")
    folders = os.pathsep.join(str(Path(path).parent) for path in (nvml.library, cuda_library))
    environ = os.environ | {"LD_LIBRARY_PATH": folders, VARIABLE: str(nvml.description)}
    by_index = child(CUDA_LISTS, environ | {"CUDA_VISIBLE_DEVICES": "0"})
    assert by_index == [uuid(1).partition("-")[2].replace("-", "")]  # an index names another card
    service = GPUDiscoveryService(backends={"cuda": opened(nvml)}, environ=environ)
    with LocalNode(environ, service) as node:
        for place in range(3):
            pinned = apply_changes(environ, node.environment((f"cuda:{place}",)))
            assert child(CUDA_LISTS, pinned) == [uuid(place).partition("-")[2].replace("-", "")]


@pytest.mark.shows("vulkan", "pinning", "software driver")
def test_the_loader_shows_a_pinned_child_its_driver_alone(
    vulkan_environment: dict[str, str], shown_on: Callable[[str, str], None]
) -> None:
    """Rule: of two drivers the loader finds the pinned one; pinned to the host it finds none."""
    with LocalNode(vulkan_environment) as node:
        devices = [one for one in node.inventory().devices if one.backend == "vulkan"]
        assert len(devices) == 2
        assert len(child(VULKAN_LISTS, vulkan_environment)) == 2
        for device in devices:
            pinned = apply_changes(vulkan_environment, node.environment((device.device_id,)))
            assert child(VULKAN_LISTS, pinned) == [device.name]
        host = apply_changes(vulkan_environment, node.environment(("cpu:0",)))
        assert child(VULKAN_LISTS, host) == []
    shown_on(
        " and ".join(device.name for device in devices),
        " and ".join(str(device.driver_version) for device in devices),
    )


@pytest.fixture
def twins(
    tmp_path: Path, llvmpipe_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of a machine whose one Vulkan driver has two equal cards."""
    try:
        manifest = twin_driver.build(tmp_path, llvmpipe_manifest)
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")
    for name in LISTS:
        monkeypatch.setenv(name, str(manifest))
    return dict(os.environ)


def test_between_cards_of_one_driver_a_worker_opens_its_own(
    twins: dict[str, str], tmp_path: Path
) -> None:
    """Rule: the driver hears of one card being opened, the leased one; foreign programs see both."""
    opened_cards = tmp_path / "opened"
    with LocalNode(twins) as node:
        cards = [one for one in node.inventory().devices if one.backend == "vulkan"]
        assert [card.driver_index for card in cards] == [0, 1]
        for card in cards:
            opened_cards.write_text("")
            pinned = apply_changes(twins, node.environment((card.device_id,)))
            pinned[twin_driver.OPENED] = str(opened_cards)
            assert child(WORKER, pinned) == [card.hardware_id]
            assert set(opened_cards.read_text()) == {str(card.driver_index)}
            assert pinned["GGML_VK_VISIBLE_DEVICES"] == str(card.driver_index)
            assert len(child(VULKAN_LISTS, pinned)) == 2


def test_doctor_says_where_pinning_is_not_enforced(twins: dict[str, str]) -> None:
    """Rule: cards that only our workers tell apart are named; those of a driver of their own are not."""
    doctor = [sys.executable, "-m", "exo.gpu", "doctor", "--json"]
    told = json.loads(subprocess.run(doctor, capture_output=True, check=True).stdout)["warnings"]
    (warning,) = [text for text in told if "not enforced" in text]
    assert warning.startswith("vulkan:0 and vulkan:1 have one Vulkan driver")


def test_doctor_says_nothing_of_drivers_with_one_card(vulkan_environment: dict[str, str]) -> None:
    """Rule: two drivers with one card each hide each other, and there is nothing to warn of."""
    doctor = [sys.executable, "-m", "exo.gpu", "doctor", "--json"]
    told = json.loads(subprocess.run(doctor, capture_output=True, check=True).stdout)["warnings"]
    assert not [text for text in told if "not enforced" in text]
