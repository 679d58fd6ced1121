"""What pins a process to a device and hides all others, vendor by vendor, on a machine of all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from exo.gpu.backends.cpu import CPUBackend
from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.backends.metal import MetalBackend
from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.backends.vulkan import VulkanGPUBackend
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.execution.pinning import apply_changes
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import BackendError, NoSuchDevice
from tests.backends.conftest import nvml, nvml_library
from tests.backends.nvml.fake_nvml import GIB, H100, T4, FakeNvml, cut, mig_uuid, uuid
from tests.backends.sysfs import ARC, IRIS, RX, at, card

__all__ = ["nvml", "nvml_library"]

AMD_FIRST, AMD_SECOND = "GPU-b6c8ee2f5e6e3b2a", "GPU-1111222233334444"
NVIDIA = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"}
AMD = {"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}
INTEL = {"ZE_AFFINITY_MASK", "ZE_ENABLE_PCI_ID_DEVICE_ORDER", "ONEAPI_DEVICE_SELECTOR"}
VULKAN = {
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_ADD_DRIVER_FILES",
    "EXO_GPU_VULKAN_INDEX",
    "GGML_VK_VISIBLE_DEVICES",
    "NODEVICE_SELECT",
}
OURS = {"EXO_GPU_DEVICE", "EXO_GPU_LEASES"}

# Variables of runtimes that have no backend here, of containers, and of programs: nobody's to touch.
FOREIGN = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    "CUDA_MPS_PIPE_DIRECTORY": "/tmp/nvidia-mps",
    "ASCEND_RT_VISIBLE_DEVICES": "0,1",
    "ASCEND_VISIBLE_DEVICES": "0",
    "MUSA_VISIBLE_DEVICES": "0",
    "HABANA_VISIBLE_MODULES": "0,1",
    "NEURON_RT_VISIBLE_CORES": "0-3",
    "TPU_VISIBLE_CHIPS": "0",
    "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1",
    "TPU_HOST_BOUNDS": "1,1,1",
    "FURIOSA_DEVICES": "npu0",
    "RBLN_DEVICES": "0",
    "QBRUNTIME_VISIBLE_DEVICES": "0",
    "TT_VISIBLE_DEVICES": "0",
    "ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE",
    "MESA_VK_DEVICE_SELECT": "10de:2684",
    "DRI_PRIME": "pci-0000_03_00_0",
    "VK_LOADER_DEVICE_SELECT": "0x10de",
    "LLAMA_ARG_DEVICE": "CUDA1,Vulkan0",
}

# No device id, in the value that each vendor's runtime reads so.
HIDES = {
    "cuda": {"CUDA_VISIBLE_DEVICES": "-1"},
    "rocm": {"ROCR_VISIBLE_DEVICES": "-1"},
    "level_zero": {"ZE_AFFINITY_MASK": "999"},
    "vulkan": {
        "VK_DRIVER_FILES": os.devnull,
        "VK_ICD_FILENAMES": os.devnull,
        "VK_ADD_DRIVER_FILES": None,
        "GGML_VK_VISIBLE_DEVICES": None,
    },
}
CUDA_0 = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuid(0)}
ROCM_0 = {
    "ROCR_VISIBLE_DEVICES": AMD_FIRST,
    "HIP_VISIBLE_DEVICES": None,
    "CUDA_VISIBLE_DEVICES": None,
    "GPU_DEVICE_ORDINAL": None,
}
INTEL_1 = {
    "ZE_AFFINITY_MASK": "1",
    "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1",
    "ONEAPI_DEVICE_SELECTOR": None,
}


class Machine:
    """Two NVIDIA GPUs, one cut in instances, two AMD cards, two of Intel's, llvmpipe, the host."""

    def __init__(self, folder: Path, nvml: FakeNvml, manifest: Path) -> None:
        nvml.write(H100, T4, cut(H100, 2, {0: GIB, 1: GIB}))
        card(folder, 0, RX)
        second = at("0000:83:00.0", "1002:744C", "amdgpu")
        card(folder, 1, RX, {"device/unique_id": AMD_SECOND.removeprefix("GPU-")}, second)
        card(folder, 2, ARC)
        card(folder, 3, IRIS)
        self._folder, self._nvml, self._manifest = folder, nvml, manifest

    def environ(self, **inherited: str) -> dict[str, str]:
        drivers = dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), str(self._manifest))
        state = {"EXO_GPU_STATE": os.environ["EXO_GPU_STATE"], "EXO_GPU_CONFIG": os.devnull}
        return drivers | state | {"PATH": os.environ["PATH"]} | inherited

    def node(self, **inherited: str) -> LocalNode:
        """This machine as a process sees it that inherited these variables."""
        environ = self.environ(**inherited)
        backends = {
            "cuda": CudaBackend(
                environ=environ, library=self._nvml.library, sysfs=self._folder / "none"
            ),
            "rocm": RocmBackend(environ=environ, root=self._folder),
            "level_zero": LevelZeroBackend(environ=environ, root=self._folder),
            "vulkan": VulkanGPUBackend(environ=environ),
            "metal": MetalBackend(platform="linux"),
            "cpu": CPUBackend(),
        }
        service = GPUDiscoveryService(
            backends=backends, environ=environ, sysfs=self._folder / "none"
        )
        return LocalNode(environ, service)

    def changes(self, *device_ids: str, **inherited: str) -> dict[str, str | None]:
        with self.node(**inherited) as node:
            return node.environment(device_ids)

    def listed(self, **inherited: str) -> list[str]:
        with self.node(**inherited) as node:
            return [device.device_id for device in node.inventory().devices]


@pytest.fixture
def machine(tmp_path: Path, nvml: FakeNvml, llvmpipe_manifest: Path) -> Machine:
    return Machine(tmp_path / "cards", nvml, llvmpipe_manifest)


def of_vendors(changes: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: value for name, value in changes.items() if name not in OURS}


def hidden(*backends: str) -> dict[str, str | None]:
    return {name: value for backend in backends for name, value in HIDES[backend].items()}


ROWS: list[tuple[tuple[str, ...], dict[str, str | None]]] = [
    (("cuda:0",), {**hidden("rocm", "level_zero", "vulkan"), **CUDA_0}),
    (
        ("cuda:1", "cuda:0"),
        {
            **hidden("rocm", "level_zero", "vulkan"),
            **CUDA_0,
            "CUDA_VISIBLE_DEVICES": f"{uuid(1)},{uuid(0)}",
        },
    ),
    (
        ("cuda:2:1",),
        {
            **hidden("rocm", "level_zero", "vulkan"),
            **CUDA_0,
            "CUDA_VISIBLE_DEVICES": mig_uuid(2, 1),
        },
    ),
    (("rocm:0",), {**hidden("cuda", "level_zero", "vulkan"), **ROCM_0}),
    (
        ("rocm:0", "rocm:1"),
        {
            **hidden("cuda", "level_zero", "vulkan"),
            **ROCM_0,
            "ROCR_VISIBLE_DEVICES": f"{AMD_FIRST},{AMD_SECOND}",
        },
    ),
    (("level_zero:1",), {**hidden("cuda", "rocm", "vulkan"), **INTEL_1}),
    (
        ("level_zero:0", "level_zero:1"),
        {**hidden("cuda", "rocm", "vulkan"), **INTEL_1, "ZE_AFFINITY_MASK": "0,1"},
    ),
    (
        ("vulkan:0",),
        {
            **hidden("cuda", "rocm", "level_zero"),
            "VK_DRIVER_FILES": "the manifest",
            "VK_ICD_FILENAMES": "the manifest",
            "VK_ADD_DRIVER_FILES": None,
            "EXO_GPU_VULKAN_INDEX": "0",
            "GGML_VK_VISIBLE_DEVICES": "0",
            "NODEVICE_SELECT": "1",
        },
    ),
    (("cpu:0",), hidden("cuda", "rocm", "level_zero", "vulkan")),
]


@pytest.mark.parametrize(("device_ids", "expected"), ROWS, ids=str)
def test_the_device_is_named_and_every_other_vendor_hidden(
    device_ids: tuple[str, ...],
    expected: dict[str, str | None],
    machine: Machine,
    llvmpipe_manifest: Path,
) -> None:
    """Rule: exactly these variables change; None means that one is removed."""
    named = {
        name: str(llvmpipe_manifest) if value == "the manifest" else value
        for name, value in expected.items()
    }
    assert of_vendors(machine.changes(*device_ids)) == named


@pytest.mark.parametrize("device_id", [row[0][0] for row in ROWS])
def test_what_is_nobodys_here_is_never_touched(device_id: str, machine: Machine) -> None:
    """Rule: a variable that no backend knows reaches the child as it was, whatever the device."""
    changes = machine.changes(device_id, **FOREIGN)
    assert not FOREIGN.keys() & changes.keys()
    assert changes.keys() <= NVIDIA | AMD | INTEL | VULKAN | OURS
    child = apply_changes(machine.environ(**FOREIGN), changes)
    assert {name: child[name] for name in FOREIGN} == FOREIGN


def test_the_parents_own_environment_stays_as_it_is(machine: Machine) -> None:
    """Rule: pinning is a value for the child; nothing is set in the process that starts it."""
    before = dict(os.environ)
    for device_ids, _ in ROWS:
        machine.changes(*device_ids)
    assert dict(os.environ) == before


# What is inherited is the universe.

ALL = [
    "cuda:0",
    "cuda:1",
    "cuda:2:0",
    "cuda:2:1",
    "rocm:0",
    "rocm:1",
    "level_zero:0",
    "level_zero:1",
    "vulkan:0",
    "cpu:0",
]


def without(*prefixes: str) -> list[str]:
    return [name for name in ALL if not name.startswith(prefixes)]


UNIVERSES: list[tuple[dict[str, str], list[str]]] = [
    ({}, ALL),
    # Unset is everything, empty is nothing: NVIDIA's and AMD's lists.
    ({"CUDA_VISIBLE_DEVICES": ""}, without("cuda")),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, without("cuda")),
    ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, without("cuda")),
    ({"CUDA_VISIBLE_DEVICES": uuid(1)}, without("cuda:0", "cuda:2")),
    ({"CUDA_VISIBLE_DEVICES": "GPU-1f"}, without("cuda:0", "cuda:2")),
    ({"CUDA_VISIBLE_DEVICES": f"{uuid(0)},{uuid(1)}"}, without("cuda:2")),
    # The list ends silently at its first invalid entry.
    ({"CUDA_VISIBLE_DEVICES": f"{uuid(1)},-1,{uuid(0)}"}, without("cuda:0", "cuda:2")),
    ({"CUDA_VISIBLE_DEVICES": mig_uuid(2, 1)}, without("cuda:0", "cuda:1", "cuda:2:0")),
    # Indices are in CUDA's order, which is not NVML's: of unlike cards none is sure.
    ({"CUDA_VISIBLE_DEVICES": "0"}, without("cuda")),
    ({"ROCR_VISIBLE_DEVICES": ""}, without("rocm")),
    ({"ROCR_VISIBLE_DEVICES": "-1"}, without("rocm")),
    ({"ROCR_VISIBLE_DEVICES": AMD_SECOND}, without("rocm:0")),
    # AMD's lists are applied one after the other, and each renumbers what is left.
    ({"ROCR_VISIBLE_DEVICES": AMD_SECOND, "HIP_VISIBLE_DEVICES": "0"}, without("rocm:0")),
    ({"ROCR_VISIBLE_DEVICES": AMD_SECOND, "HIP_VISIBLE_DEVICES": "1"}, without("rocm")),
    ({"ROCR_VISIBLE_DEVICES": AMD_SECOND, "GPU_DEVICE_ORDINAL": "1"}, without("rocm")),
    # ROCr's order is not HIP's: of two cards a single index is not sure.
    ({"HIP_VISIBLE_DEVICES": "0"}, without("rocm")),
    ({"HIP_VISIBLE_DEVICES": "1,0"}, ALL),
    # NVIDIA's list is not AMD's, though HIP reads it where its own is unset.
    ({"CUDA_VISIBLE_DEVICES": uuid(0)}, without("cuda:1", "cuda:2")),
    # Intel's mask: empty is everything, a place of nobody is nothing.
    ({"ZE_AFFINITY_MASK": ""}, ALL),
    ({"ZE_AFFINITY_MASK": "999", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, without("level_zero")),
    ({"ZE_AFFINITY_MASK": "1", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, without("level_zero:0")),
    ({"ZE_AFFINITY_MASK": "1"}, without("level_zero")),
    # A selector counts what the mask leaves: the two cannot stand together, so it hides all.
    ({"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}, without("level_zero")),
    ({"ONEAPI_DEVICE_SELECTOR": "*:cpu"}, without("level_zero")),
    ({"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}, ALL),
    ({"ONEAPI_DEVICE_SELECTOR": "*:*"}, ALL),
    # Vulkan: a manifest that names no driver; Mesa's choice of a model, once it is forced.
    ({"VK_DRIVER_FILES": os.devnull, "VK_ICD_FILENAMES": os.devnull}, without("vulkan")),
    ({"EXO_GPU_VULKAN_INDEX": "1"}, without("vulkan")),
    ({"EXO_GPU_VULKAN_INDEX": "0"}, ALL),
    ({"MESA_VK_DEVICE_SELECT": "10de:2684"}, ALL),
    ({"MESA_VK_DEVICE_SELECT": "10de:2684!"}, without("vulkan")),
    ({"MESA_VK_DEVICE_SELECT": "10005:0!"}, ALL),
    (
        {
            "MESA_VK_DEVICE_SELECT": "10de:2684",
            "MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE": "1",
        },
        without("vulkan"),
    ),
    ({"MESA_VK_DEVICE_SELECT": "list"}, ALL),
    # Containers' variables restrict nothing by themselves: their runtime did so already.
    ({"NVIDIA_VISIBLE_DEVICES": "void"}, ALL),
    ({"NVIDIA_VISIBLE_DEVICES": "none", "ASCEND_RT_VISIBLE_DEVICES": ""}, ALL),
]


@pytest.mark.parametrize(("inherited", "expected"), UNIVERSES, ids=str)
def test_an_inherited_restriction_is_never_widened(
    inherited: dict[str, str], expected: list[str], machine: Machine
) -> None:
    """Rule: what a list leaves out is not offered, and a pin stays within what it leaves."""
    assert machine.listed(**inherited) == expected
    with machine.node() as unrestricted, machine.node(**inherited) as restricted:
        assert [device.device_id for device in unrestricted.inventory().devices] == ALL
        for device_id in ALL:
            if device_id in expected:
                assert restricted.environment((device_id,))
            else:
                with pytest.raises((BackendError, NoSuchDevice)):
                    restricted.environment((device_id,))


@pytest.mark.parametrize("device_id", ALL)
def test_a_pinned_process_finds_its_device_alone(device_id: str, machine: Machine) -> None:
    """Rule: a search in the pinned environment, nested or ours, finds the device and the host.

    AMD's HIP reads NVIDIA's variable too, so that an AMD job cannot have it set: there NVIDIA's
    cards stay visible.
    """
    pinned = apply_changes(machine.environ(), machine.changes(device_id))
    family = device_id.partition(":")[0]
    left = [name.partition(":")[0] for name in machine.listed(**pinned)]
    beside = ["cpu"] if family != "cpu" else []
    unhidden = ["cuda"] * 4 if family == "rocm" else []
    assert sorted(left) == sorted([family, *beside, *unhidden])


def test_pinning_twice_is_pinning_once(machine: Machine) -> None:
    """Rule: what a pinned process starts, pinned again to the same device, sees the same."""
    for device_id in ("cuda:0", "rocm:1", "level_zero:0", "vulkan:0"):
        first = machine.changes(device_id)
        pinned = apply_changes(machine.environ(), first)
        with machine.node(**pinned) as nested:
            (again,) = [
                device.device_id
                for device in nested.inventory().devices
                if device.device_id.split(":")[0] == device_id.split(":")[0]
            ]
            second = nested.environment((again,))
        vendors = of_vendors(first)
        assert {name: of_vendors(second).get(name) for name in vendors} == vendors


REFUSED = [
    (("cuda:0", "rocm:0"), "two kinds"),
    (("cuda:0", "cuda:2:0"), "one MIG instance and nothing beside it"),
    (("cuda:2:0", "cuda:2:1"), "one MIG instance and nothing beside it"),
]


@pytest.mark.parametrize(("device_ids", "reason"), REFUSED)
def test_what_one_process_cannot_have_together_is_refused(
    device_ids: tuple[str, ...], reason: str, machine: Machine
) -> None:
    """Rule: two vendors, or an instance beside anything, are refused by name and not half pinned."""
    with pytest.raises(BackendError, match=reason):
        machine.changes(*device_ids)


def test_cards_without_a_stable_name_fall_back_to_their_place(
    tmp_path: Path, nvml: FakeNvml
) -> None:
    """Rule: NVIDIA: the index in PCI order, fixed in the same breath; AMD: only a card that is alone."""
    nvml.write(H100, T4 | {"uuid": "!3"})
    cuda = CudaBackend(environ={}, library=nvml.library, sysfs=tmp_path / "none")
    cuda.find()
    assert cuda.pinning([cuda.require("cuda:1")], {}) == CUDA_0 | {"CUDA_VISIBLE_DEVICES": "1"}
    bare = {"device/unique_id": None}
    card(tmp_path, 0, RX, bare)
    alone = RocmBackend(environ={}, root=tmp_path)
    alone.find()
    assert alone.pinning([alone.require("rocm:0")], {})["ROCR_VISIBLE_DEVICES"] == "0"
    card(tmp_path, 1, RX, bare, at("0000:83:00.0", "1002:744C", "amdgpu"))
    two = RocmBackend(environ={}, root=tmp_path)
    two.find()
    with pytest.raises(BackendError, match="no unique id"):
        two.pinning([two.require("rocm:0")], {})


def test_apple_has_nothing_to_set() -> None:
    """Rule: there is one GPU and no variable; the pin is the lease alone."""
    backend = MetalBackend(platform="darwin")
    assert backend.pinning([], {"CUDA_VISIBLE_DEVICES": "0"}) == {}
    assert backend.hiding() == {}
