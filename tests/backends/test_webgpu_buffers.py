"""Memory and shaders of AMD and Intel cards, with a software driver's ids in the card's place.

No such card is at hand, so the made card bears the PCI ids that a software driver reports: wgpu
then opens that real driver by the very path on which it would open the card's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import vulkan_drivers

from exo.gpu.backend import GPUBackend
from exo.gpu.backends import host
from exo.gpu.backends.drm import Card
from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.backends.webgpu_buffers import open_card
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import (
    BackendError,
    InvalidHandle,
    NoSuchDevice,
    OutOfDeviceMemory,
)
from tests.backends.sysfs import ARC, IRIS, RX, at, card, table
from tests.backends.test_metal import SHADER

GIB = 2**30
SWIFTSHADER, LLVMPIPE = "1AE0:C0DE", "10005:0000"
PLACE, BUILT_IN = "0000:03:00.0", "0000:00:02.0"


def rocm(root: Path) -> RocmBackend:
    """AMD's backend on cards that SwiftShader stands in for."""
    made = RocmBackend(environ={}, root=root, vendor="1ae0")
    made.find()
    return made


def level_zero(root: Path) -> LevelZeroBackend:
    """Intel's backend on cards that llvmpipe stands in for."""
    made = LevelZeroBackend(environ={}, root=root, vendor="10005")
    made.find()
    return made


@pytest.fixture
def amd(vulkan_environment: dict[str, str], tmp_path: Path) -> Iterator[RocmBackend]:
    """One card of 24 GiB, of which 1 GiB is in use."""
    del vulkan_environment
    card(tmp_path, 0, RX, at(PLACE, SWIFTSHADER, "amdgpu"))
    made = rocm(tmp_path)
    yield made
    anyio.run(made.shutdown)


@pytest.fixture
def intel(vulkan_environment: dict[str, str], tmp_path: Path) -> Iterator[LevelZeroBackend]:
    """One card with memory of its own."""
    del vulkan_environment
    card(tmp_path, 0, ARC, at(PLACE, LLVMPIPE, "xe"))
    made = level_zero(tmp_path)
    yield made
    anyio.run(made.shutdown)


async def move(backend: GPUBackend, device_id: str) -> None:
    """Write, copy across, read back whole and in part, and free."""
    data = bytes(range(256)) * 64
    first = await backend.allocate(device_id, len(data))
    second = await backend.allocate(device_id, len(data))
    await backend.copy_to_device(data, first)
    await backend.copy_to_device(b"seven b", first, 5)
    await backend.copy_device_to_device(first, second, len(data))
    await backend.synchronize(device_id)
    expected = data[:5] + b"seven b" + data[12:]
    assert await backend.copy_from_device(second, 0, len(data)) == expected
    assert await backend.copy_from_device(second, 6, 9) == expected[6:15]
    with pytest.raises(BackendError, match="reach beyond"):
        await backend.copy_from_device(second, 1, len(data))
    await backend.deallocate(first)
    await backend.deallocate(second)
    for call in (backend.deallocate(first), backend.copy_from_device(first, 0, 1)):
        with pytest.raises(InvalidHandle):
            await call
    with pytest.raises(NoSuchDevice):
        await backend.synchronize("rocm:9")


def doubled(backend: RocmBackend | LevelZeroBackend, device_id: str) -> list[int]:
    packed = b"".join(number.to_bytes(4, "little") for number in (1, 2, 3))
    output = backend.compute(device_id, SHADER, [packed], len(packed), (3, 1, 1))
    return [int.from_bytes(output[at : at + 4], "little") for at in (0, 4, 8)]


@pytest.mark.shows("rocm", "memory", "fake")
@pytest.mark.shows("rocm", "compute", "fake")
def test_amd_memory_and_shaders_go_through_wgpu(
    amd: RocmBackend, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: what is written is read back, copied and computed on; bad handles are errors."""
    shown_on("SwiftShader in an AMD card's place", "SwiftShader driver")
    anyio.run(move, amd, "rocm:0")
    assert doubled(amd, "rocm:0") == [2, 4, 6]
    with pytest.raises(BackendError):
        amd.compute("rocm:0", "no shader", [], 4, (1, 1, 1))


@pytest.mark.shows("level_zero", "memory", "fake")
@pytest.mark.shows("level_zero", "compute", "fake")
def test_intel_memory_and_shaders_go_through_wgpu(
    intel: LevelZeroBackend, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: the same on Intel; its driver refuses what it cannot give, as it alone knows."""
    shown_on("llvmpipe in an Intel card's place", "llvmpipe")
    anyio.run(move, intel, "level_zero:0")
    assert doubled(intel, "level_zero:0") == [2, 4, 6]
    with pytest.raises(OutOfDeviceMemory, match="in one piece"):
        anyio.run(intel.allocate, "level_zero:0", 2**50)


def test_an_amd_card_gives_no_more_than_it_has_free(amd: RocmBackend) -> None:
    """Rule: the card's own account bounds all pieces together, also those not yet touched."""

    async def work() -> None:
        info = await amd.get_device_memory_info("rocm:0")
        assert (info["total_bytes"], info["used_bytes"]) == (24 * GIB, GIB)
        with pytest.raises(OutOfDeviceMemory, match=r"23\.0 GiB free"):
            await amd.allocate("rocm:0", 23 * GIB + 1)
        held = await amd.allocate("rocm:0", 2**20)
        with pytest.raises(OutOfDeviceMemory):
            await amd.allocate("rocm:0", 23 * GIB - 2**20 + 1)
        await amd.deallocate(held)

    anyio.run(work)
    anyio.run(amd.shutdown)  # harmless twice


@pytest.mark.parametrize("told", [True, False])
def test_amd_graphics_in_a_processor_give_no_more_than_the_machine_has(
    vulkan_environment: dict[str, str], tmp_path: Path, *, told: bool
) -> None:
    """Rule: what the card could map of the machine's memory is not all free."""
    del vulkan_environment
    mapped = {"device/mem_info_gtt_total": str(2**60), "device/mem_info_gtt_used": "0"}
    hidden = {"device/mem_info_vram_total": None, "device/mem_info_vram_used": None}
    tree = mapped if told else hidden
    folder = card(tmp_path, 0, RX, at(PLACE, SWIFTSHADER, "amdgpu"), tree)
    (folder / "device/gpu_metrics").write_bytes(table((2, 1)))
    made = rocm(tmp_path)
    assert made.require("rocm:0").memory_pool == HOST_POOL
    with pytest.raises(OutOfDeviceMemory, match=r"rocm:0: .* asked"):
        anyio.run(made.allocate, "rocm:0", host.memory().total_bytes + 1)
    anyio.run(made.shutdown)


def test_intel_graphics_in_a_processor_give_no_more_than_the_machine_has(
    vulkan_environment: dict[str, str], tmp_path: Path
) -> None:
    """Rule: their memory is the machine's."""
    del vulkan_environment
    card(tmp_path, 0, IRIS, at(BUILT_IN, LLVMPIPE, "i915"))
    made = level_zero(tmp_path)
    with pytest.raises(OutOfDeviceMemory, match=r"level_zero:0: .* asked"):
        anyio.run(made.allocate, "level_zero:0", host.memory().total_bytes + 1)
    anyio.run(made.shutdown)


def test_memory_stays_with_its_card_when_ids_move(amd: RocmBackend, tmp_path: Path) -> None:
    """Rule: a card added before it takes its id, and not its memory."""

    async def work() -> None:
        handle = await amd.allocate("rocm:0", 4)
        await amd.copy_to_device(b"mine", handle)
        card(tmp_path, 1, RX, at("0000:01:00.0", "1AE0:0001", "amdgpu"), {"device/unique_id": None})
        assert [found.pci_address for found in amd.find()] == ["0000:01:00.0", PLACE]
        assert await amd.copy_from_device(handle, 0, 4) == b"mine"
        with pytest.raises(BackendError, match="no Vulkan adapter 0 with the PCI ids 1ae0:0001"):
            await amd.allocate("rocm:0", 4)
        await amd.deallocate(handle)

    anyio.run(work)


def test_of_equal_cards_none_is_guessed(amd: RocmBackend, tmp_path: Path) -> None:
    """Rule: wgpu tells no place on the bus, so a card with an equal is refused, hidden or not."""
    card(tmp_path, 1, RX, at("0000:04:00.0", SWIFTSHADER, "amdgpu"))
    with pytest.raises(BackendError, match=r"0000:03:00\.0 and 0000:04:00\.0 are equal"):
        anyio.run(amd.allocate, "rocm:0", 4)
    with pytest.raises(BackendError, match="equal cards"):
        amd.compute("rocm:0", SHADER, [], 4, (1, 1, 1))


def test_of_equal_adapters_none_is_guessed(tmp_path: Path, swiftshader_manifest: Path) -> None:
    """Rule: where a driver shows more such adapters than there are cards, it is refused."""
    copy = tmp_path / "libvk_copy.so"
    copy.write_bytes((swiftshader_manifest.parent / "libvk_swiftshader.so").read_bytes())
    text = swiftshader_manifest.read_text().replace("./libvk_swiftshader.so", str(copy))
    (tmp_path / "copy_icd.json").write_text(text)
    named = os.pathsep.join([str(swiftshader_manifest), str(tmp_path / "copy_icd.json")])
    folder = card(tmp_path, 0, RX, at(PLACE, SWIFTSHADER, "amdgpu"))
    # A process of its own: Vulkan's loader reads the manifests once.
    program = (
        "from pathlib import Path\n"
        "from exo.gpu.backends.drm import Card\n"
        "from exo.gpu.backends.webgpu_buffers import open_card\n"
        f"card = Card(Path({str(folder)!r}), 0)\n"
        "open_card(card, [card])\n"
    )
    environ = os.environ | dict.fromkeys(vulkan_drivers.VARIABLES, named)
    told = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    assert "2 adapters with the PCI ids 1ae0:c0de are equal" in told.stderr.splitlines()[-1]


def test_a_card_without_ids_is_refused(tmp_path: Path) -> None:
    """Rule: off the PCI bus nothing names the adapter, and that is said."""
    folder = card(tmp_path, 0, {"device/uevent": "DRIVER=xe"})
    with pytest.raises(BackendError, match="card0 has PCI ids '', which are none"):
        open_card(Card(folder, 0), [])
