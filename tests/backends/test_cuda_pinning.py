"""Which NVIDIA devices the environment leaves, and how a process is pinned to one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError
from tests.backends.nvml.fake_nvml import H100, T4, VARIABLE, FakeNvml, uuid
from tests.backends.nvml.opening import closed, ids, opened

__all__ = ["closed"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (uuid(1), ["cuda:1"]),
        (f"{uuid(1)},{uuid(0)}", ["cuda:0", "cuda:1"]),
        ("GPU-1f", ["cuda:1"]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        (f"{uuid(0)},-1,{uuid(1)}", ["cuda:0"]),
        (f"nonsense,{uuid(0)}", []),
        ("MIG-1f", []),
    ],
)
def test_an_inherited_list_is_the_universe(nvml: FakeNvml, value: str, expected: list[str]) -> None:
    """Rule: what CUDA_VISIBLE_DEVICES leaves out is not listed; the list ends at its first flaw."""
    nvml.write(H100, T4)
    backend = opened(nvml, CUDA_VISIBLE_DEVICES=value)
    assert ids(backend) == expected
    assert bool(backend.remark) == (len(expected) < 2)


def test_indices_count_in_pci_order_where_the_environment_says_so(nvml: FakeNvml) -> None:
    """Rule: with CUDA_DEVICE_ORDER=PCI_BUS_ID an index is NVML's."""
    nvml.write(H100, T4)
    assert ids(opened(nvml, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")) == ["cuda:1"]


def test_indices_of_unlike_gpus_in_unknown_order_are_refused(nvml: FakeNvml) -> None:
    """Rule: CUDA's own order is by speed; a guess could widen the restriction, so none is made."""
    nvml.write(H100, T4)
    backend = opened(nvml, CUDA_VISIBLE_DEVICES="1")
    assert ids(backend) == []
    assert "UUID" in backend.remark
    assert ids(opened(nvml, CUDA_VISIBLE_DEVICES="1,0")) == ["cuda:0", "cuda:1"]
    mixed = opened(nvml, CUDA_VISIBLE_DEVICES=f"1,{uuid(0)}")
    assert set(ids(mixed)) <= {"cuda:0", "cuda:1"}


def test_indices_of_equal_gpus_are_in_pci_order(nvml: FakeNvml) -> None:
    """Rule: equal GPUs are equally fast, so CUDA's order is the bus's."""
    nvml.write(H100, H100, H100)
    assert ids(opened(nvml, CUDA_VISIBLE_DEVICES="2,0,7,1")) == ["cuda:0", "cuda:2"]


@pytest.mark.shows("cuda", "pinning", "fake")
def test_a_process_is_pinned_by_uuid(nvml: FakeNvml, shown_on: Callable[[str, str], None]) -> None:
    """Rule: pinning names the full UUID and fixes the order; in the child exactly it is left."""
    nvml.write(H100, T4)
    shown_on("scripted H100 and T4", "fake NVML 570.86.15")
    backend = opened(nvml)
    pinned = backend.pinning([backend.require("cuda:1")], {})
    assert pinned == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": uuid(1)}
    program = (
        "from exo.gpu.backends.cuda import CudaBackend\n"
        "print(*[device.hardware_id for device in CudaBackend().find()])"
    )
    environ = os.environ | {
        VARIABLE: str(nvml.description),
        "LD_LIBRARY_PATH": str(Path(nvml.library).parent),
    }
    for changes, expected in ((pinned, uuid(1)), (backend.hiding(), "")):
        child = subprocess.run(
            [sys.executable, "-c", program],
            env=environ | {name: value for name, value in changes.items() if value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stdout.strip() == expected


def test_several_gpus_are_named_together(nvml: FakeNvml) -> None:
    """Rule: a gang of GPUs is one list of UUIDs, in the order asked for; one outside refuses all."""
    nvml.write(H100, T4, T4)
    backend = opened(nvml)
    first, _, third = backend.list_devices()
    pinned = backend.pinning([third, first], {})
    assert pinned["CUDA_VISIBLE_DEVICES"] == f"{uuid(2)},{uuid(0)}"
    with pytest.raises(BackendError, match="cuda:2"):
        backend.pinning([first, third], {"CUDA_VISIBLE_DEVICES": uuid(0)})


def test_pinning_stays_within_the_inherited_list(nvml: FakeNvml) -> None:
    """Rule: a nested lease never leaves the universe that it was given."""
    nvml.write(H100, T4)
    backend = opened(nvml)
    first, second = backend.list_devices()
    inherited = {"CUDA_VISIBLE_DEVICES": uuid(0)}
    assert backend.pinning([first], inherited)["CUDA_VISIBLE_DEVICES"] == uuid(0)
    with pytest.raises(BackendError, match="not among CUDA_VISIBLE_DEVICES"):
        backend.pinning([second], inherited)
    with pytest.raises(BackendError, match="UUID"):
        backend.pinning([second], {"CUDA_VISIBLE_DEVICES": "0"})


def test_a_gpu_without_uuid_is_pinned_by_its_place(nvml: FakeNvml) -> None:
    """Rule: without a UUID the PCI address is the identity, and the index in PCI order pins."""
    nvml.write(H100, T4 | {"uuid": "!3"})
    backend = opened(nvml)
    device = backend.require("cuda:1")
    assert device.hardware_id == device.pci_address == "0000:02:00.0"
    assert backend.read("cuda:1").temperature_celsius == 55
    pinned = backend.pinning([device], {})
    assert pinned == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_a_device_of_another_survey_can_be_pinned(nvml: FakeNvml) -> None:
    """Rule: a backend that has not looked yet pins what it is handed."""
    device = GPUDevice("cuda:3", "card", "NVIDIA", "cuda", hardware_id=uuid(3))
    pinned = CudaBackend(environ={}, library=nvml.library).pinning([device], {})
    assert pinned["CUDA_VISIBLE_DEVICES"] == uuid(3)
