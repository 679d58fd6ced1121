"""MIG instances: devices of their own, in the place of the GPU that was cut up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exo.gpu.backend import DeviceProcess
from exo.gpu.vocabulary.errors import BackendError, DeviceLost
from tests.backends.nvml.fake_nvml import GIB, H100, T4, FakeNvml, cut, mig_uuid, uuid
from tests.backends.nvml.opening import closed, ids, opened

__all__ = ["closed"]

CUT = cut(H100, 0, {0: 10 * GIB, 2: 40 * GIB})


@pytest.mark.shows("cuda", "finding", "fake")
def test_instances_stand_in_the_place_of_their_gpu(
    nvml: FakeNvml, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: a GPU in MIG mode is not listed, each instance is, with its own UUID and memory."""
    nvml.write(CUT, T4)
    shown_on("scripted H100 with two MIG instances", "fake NVML 570.86.15")
    first, second, whole = opened(nvml).list_devices()
    assert [first.device_id, second.device_id, whole.device_id] == [
        "cuda:0:0",
        "cuda:0:2",
        "cuda:1",
    ]
    assert (first.hardware_id, second.hardware_id) == (mig_uuid(0, 0), mig_uuid(0, 2))
    assert (first.memory_bytes, second.memory_bytes) == (10 * GIB, 40 * GIB)
    assert second.memory_available == 30 * GIB
    assert (first.memory_pool, first.pci_address) == (mig_uuid(0, 0), None)
    assert (first.compute_capability, first.compute_units) == ("9.0", 16)
    assert first.name == "NVIDIA H100 PCIe MIG 0g"


def test_a_gpu_with_mig_off_is_a_whole_gpu(nvml: FakeNvml) -> None:
    """Rule: being able to be cut up is not being cut up."""
    nvml.write(H100 | {"mig": 0})
    assert ids(opened(nvml)) == ["cuda:0"]


def test_a_gpu_in_mig_mode_without_an_instance(nvml: FakeNvml) -> None:
    """Rule: nothing can run on it, and the remark says what to do."""
    nvml.write(H100 | {"mig": 1}, T4)
    backend = opened(nvml)
    assert ids(backend) == ["cuda:1"]
    assert "nvidia-smi mig" in backend.remark


def test_an_instance_that_fails_hides_no_other(nvml: FakeNvml) -> None:
    """Rule: one instance whose handle is refused is named, and the others are listed."""
    nvml.write(CUT | {"mig.0.handle": "!999"})
    backend = opened(nvml)
    assert ids(backend) == ["cuda:0:2"]
    assert "MIG instance 0" in backend.remark


def test_an_instance_reads_what_is_its_own(nvml: FakeNvml) -> None:
    """Rule: memory is the instance's; warmth and clocks its GPU's; sums over all are nobody's."""
    nvml.write(CUT)
    sample = opened(nvml).read("cuda:0:2")
    assert (sample.memory_total_bytes, sample.memory_used_bytes) == (40 * GIB, 10 * GIB)
    assert (sample.temperature_celsius, sample.clock_rate_mhz) == (55, 1410)
    assert sample.corrected_errors == 0
    for name in (
        "compute_utilization_percent",
        "memory_utilization_percent",
        "power_watts",
        "power_limit_watts",
        "energy_joules",
    ):
        assert getattr(sample, name) is None
        assert "rest of its GPU" in sample.missing_reasons[name]


def test_an_instance_never_gets_the_machines_memory(nvml: FakeNvml) -> None:
    """Rule: a slice without figures stays without, whatever it is called."""
    nvml.write(CUT | {"mig.0.name": "NVIDIA Thor MIG 1g", "mig.0.memory.total": "!3"})
    backend = opened(nvml)
    assert backend.require("cuda:0:0").memory_bytes is None
    assert backend.require("cuda:0:0").memory_pool == mig_uuid(0, 0)
    assert backend.read("cuda:0:0").memory_total_bytes is None


def test_a_lost_gpu_loses_its_instances(nvml: FakeNvml) -> None:
    """Rule: what happens to the GPU happens to each of its instances, and to no other GPU."""
    nvml.write(CUT, T4)
    backend = opened(nvml)
    nvml.change("0.temperature", "!15")
    with pytest.raises(DeviceLost, match="cuda:0:2"):
        backend.read("cuda:0:2")
    assert backend.read("cuda:1").temperature_celsius == 55


def test_processes_of_an_instance(nvml: FakeNvml) -> None:
    """Rule: an instance lists its own processes."""
    nvml.write(CUT | {"mig.2.processes": f"77:{GIB}", "processes": "1:1,77:1"})
    found = opened(nvml).processes("cuda:0:2")
    assert found == [DeviceProcess(pid=77, memory_bytes=GIB)]


@pytest.mark.shows("cuda", "pinning", "fake")
def test_a_process_is_pinned_to_one_instance_alone(
    nvml: FakeNvml, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: one MIG UUID a process, beside nothing: CUDA would show it no more."""
    nvml.write(CUT, T4)
    shown_on("scripted H100 with two MIG instances", "fake NVML 570.86.15")
    backend = opened(nvml)
    first, second, whole = backend.list_devices()
    pinned = backend.pinning([second], {})
    assert pinned == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": mig_uuid(0, 2)}
    for mixed in ([first, second], [first, whole], [whole, second]):
        with pytest.raises(BackendError, match="one MIG instance"):
            backend.pinning(mixed, {})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (mig_uuid(0, 2), ["cuda:0:2"]),
        (uuid(1), ["cuda:1"]),
        (uuid(0), []),
        ("0", []),
    ],
)
def test_an_inherited_list_beside_instances(
    nvml: FakeNvml, value: str, expected: list[str]
) -> None:
    """Rule: an instance is named by its UUID; what an index means then is for CUDA to know."""
    nvml.write(CUT, T4)
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert ids(opened(nvml, CUDA_VISIBLE_DEVICES=value, **order)) == expected
