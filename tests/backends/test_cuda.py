"""NVIDIA devices through the real pynvml on a fake driver library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, DeviceLost
from exo.gpu.vocabulary.metrics import READINGS
from tests.backends.nvml.fake_nvml import GIB, H100, T4, VARIABLE, FakeNvml, uuid

_open: list[CudaBackend] = []


def opened(nvml: FakeNvml, **environ: str) -> CudaBackend:
    backend = CudaBackend(environ=environ, library=nvml.library)
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


@pytest.mark.shows("cuda", "finding", "fake")
def test_every_gpu_is_found_with_its_facts(
    nvml: FakeNvml, shown_on: Callable[[str, str], None]
) -> None:
    """Rule: each GPU is listed once, by UUID, with memory, capability, clock and PCI address."""
    nvml.write(H100, T4)
    shown_on("scripted H100 and T4", "fake NVML 570.86.15")
    first, second = opened(nvml).list_devices()
    assert (first.device_id, first.name, first.vendor) == ("cuda:0", "NVIDIA H100 PCIe", "NVIDIA")
    assert (first.hardware_id, first.pci_address) == (uuid(0), "0000:01:00.0")
    assert (first.memory_bytes, first.compute_capability) == (80 * GIB, "9.0")
    assert first.memory_available == 80 * GIB - 10 * GIB - GIB // 2
    assert (first.clock_rate_mhz, first.driver_version) == (1980, "570.86.15")
    assert (first.runtime, first.memory_pool) == ("cuda", uuid(0))
    assert (second.device_id, second.hardware_id, second.compute_units) == ("cuda:1", uuid(1), None)


@pytest.mark.shows("cuda", "telemetry", "fake")
def test_readings_are_in_base_units(nvml: FakeNvml, shown_on: Callable[[str, str], None]) -> None:
    """Rule: NVML's milliwatts become watts; reserved memory is neither used nor free."""
    nvml.write(H100)
    shown_on("scripted H100", "fake NVML 570.86.15")
    sample = opened(nvml).read("cuda:0")
    assert (sample.memory_total_bytes, sample.memory_used_bytes) == (80 * GIB, 10 * GIB)
    assert sample.memory_reserved_bytes == GIB // 2
    assert sample.memory_free_bytes == 80 * GIB - 10 * GIB - GIB // 2
    assert sample.compute_utilization_percent == 37
    assert sample.power_watts == pytest.approx(123.456)
    assert (sample.temperature_celsius, sample.clock_rate_mhz) == (55, 1410)
    assert sample.missing_reasons == {}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, "not supported by this GPU"),
        (4, "the driver denies it to this user"),
        (13, "this driver does not offer it"),
        (10, "Timeout"),
        (999, "Unknown Error"),
    ],
)
@pytest.mark.parametrize(
    ("field", "readings"),
    [
        ("power", ["power_watts"]),
        ("temperature", ["temperature_celsius"]),
        ("utilization", ["compute_utilization_percent"]),
        ("clock", ["clock_rate_mhz"]),
        ("memory.total", ["memory_total_bytes", "memory_used_bytes"]),
    ],
)
def test_an_error_costs_its_own_reading_only(
    nvml: FakeNvml, code: int, reason: str, field: str, readings: list[str]
) -> None:
    """Rule: what the driver does not give is None with its reason; everything else is read."""
    nvml.write(H100 | {field: f"!{code}", "temperature_v": f"!{code}"})
    sample = opened(nvml).read("cuda:0")
    assert sample.missing_reasons == dict.fromkeys(readings, reason)
    for name in READINGS:
        assert (getattr(sample, name) is None) == (name in readings)


def test_what_is_not_supported_is_not_asked_again(nvml: FakeNvml) -> None:
    """Rule: NOT_SUPPORTED is remembered for device and field; a passing error is not."""
    nvml.write(H100 | {"power": "!3", "clock": "!10"}, H100)
    backend = opened(nvml)
    assert backend.read("cuda:0").power_watts is None
    nvml.change("0.power", 1000)
    nvml.change("0.clock", 900)
    sample = backend.read("cuda:0")
    assert (sample.power_watts, sample.clock_rate_mhz) == (None, 900)
    assert backend.read("cuda:1").power_watts is not None


@pytest.mark.parametrize("sentinel", [0xFFFFFFFF, 0xFFFF])
def test_leaked_sentinels_are_no_readings(nvml: FakeNvml, sentinel: int) -> None:
    """Rule: a value that means "unknown" inside the driver never becomes a number."""
    leaked = {"utilization": sentinel, "temperature": sentinel, "clock.max": 0xFFFFFFFF}
    nvml.write(H100 | leaked)
    backend = opened(nvml)
    assert backend.require("cuda:0").clock_rate_mhz is None
    sample = backend.read("cuda:0")
    assert (sample.temperature_celsius, sample.compute_utilization_percent) == (None, None)
    assert f"{sentinel:#x}" in sample.missing_reasons["temperature_celsius"]
    assert sample.clock_rate_mhz == 1410


def test_more_memory_used_than_there_is_is_no_reading(nvml: FakeNvml) -> None:
    """Rule: an impossible pair of memory figures is absent with a reason, and raises nothing."""
    nvml.write(H100 | {"memory.used": 81 * GIB})
    sample = opened(nvml).read("cuda:0")
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, None)
    assert sample.temperature_celsius == 55


def test_memory_falls_back_to_version_one(nvml: FakeNvml) -> None:
    """Rule: without the second version, used includes what is reserved, and nothing is hidden."""
    nvml.write(H100 | {"memory_v2": "!13"})
    sample = opened(nvml).read("cuda:0")
    assert sample.memory_used_bytes == 10 * GIB + GIB // 2
    assert sample.memory_reserved_bytes is None
    assert sample.memory_free_bytes == 80 * GIB - 10 * GIB - GIB // 2


def test_temperature_falls_back_to_the_newer_call(nvml: FakeNvml) -> None:
    """Rule: a driver that has only the newer temperature call is still read."""
    nvml.write(H100 | {"temperature": "!3", "temperature_v": 61})
    assert opened(nvml).read("cuda:0").temperature_celsius == 61


def test_unified_memory_is_unknown_with_a_reason(nvml: FakeNvml) -> None:
    """Rule: where a GPU has no memory of its own, NVML refuses, and no figure is made up."""
    unified = {name: value for name, value in H100.items() if not name.startswith("memory")}
    nvml.write(unified | {"name": "NVIDIA GB10"})
    backend = opened(nvml)
    device = backend.require("cuda:0")
    assert (device.memory_bytes, device.memory_available) == (None, None)
    sample = backend.read("cuda:0")
    assert sample.memory_total_bytes is None
    assert sample.missing_reasons["memory_total_bytes"] == "not supported by this GPU"


@pytest.mark.parametrize("code", [15, 16])
def test_a_lost_gpu_is_an_error_and_never_zeros(nvml: FakeNvml, code: int) -> None:
    """Rule: GPU_IS_LOST and RESET_REQUIRED raise DeviceLost, and the other GPU is read."""
    nvml.write(H100, T4)
    backend = opened(nvml)
    backend.read("cuda:0")
    nvml.change("0.utilization", f"!{code}")
    with pytest.raises(DeviceLost, match="cuda:0"):
        backend.read("cuda:0")
    assert backend.read("cuda:1").temperature_celsius == 55


def test_a_gpu_lost_while_it_is_read(nvml: FakeNvml) -> None:
    """Rule: a GPU that falls off the bus between two calls gives no half sample."""
    nvml.write(H100)
    backend = opened(nvml)
    nvml.change("0.lost_after", 3)
    with pytest.raises(DeviceLost):
        backend.read("cuda:0")


def test_a_lost_gpu_does_not_hide_the_others(nvml: FakeNvml) -> None:
    """Rule: one GPU that is lost while finding is named, and the others are listed."""
    nvml.write(H100 | {"handle": "!15"}, T4)
    backend = opened(nvml)
    assert ids(backend) == ["cuda:1"]
    assert backend.remark == "GPU 0: GPU is lost"


def test_impossible_facts_hide_that_gpu_only(nvml: FakeNvml) -> None:
    """Rule: a GPU whose facts cannot be is named with the flaw, and the others are listed."""
    nvml.write(H100 | {"name": " "}, T4)
    backend = opened(nvml)
    assert ids(backend) == ["cuda:1"]
    assert "GPU 0: name" in backend.remark


def test_a_gpu_that_gives_nothing_is_an_error(nvml: FakeNvml) -> None:
    """Rule: a sample without a single reading is no sample."""
    nvml.write({"name": "mute"})
    with pytest.raises(BackendError, match="gave no reading"):
        opened(nvml).read("cuda:0")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    """Rule: without the driver, the reason names the library and the hint says what to install."""
    with pytest.raises(BackendUnavailable, match="libnvidia-ml"):
        CudaBackend(environ={}, library=str(tmp_path / "libnvidia-ml.so.1")).find()


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (9, "kernel driver is not loaded", "modprobe"),
        (12, "libnvidia-ml.so.1 was not found", "install"),
        (18, "different versions", "reboot"),
        (999, "NVML: Unknown Error", ""),
    ],
)
def test_why_nvml_does_not_open(nvml: FakeNvml, code: int, reason: str, hint: str) -> None:
    """Rule: each error of opening has its own words and its own advice."""
    nvml.write(H100, init=f"!{code}")
    with pytest.raises(BackendUnavailable) as caught:
        opened(nvml)
    assert reason in caught.value.reason
    assert hint in caught.value.hint


def test_a_library_that_cannot_count(nvml: FakeNvml) -> None:
    """Rule: a failing device count makes the backend absent, with NVML's words."""
    nvml.write(count="!999")
    with pytest.raises(BackendUnavailable, match="Unknown Error"):
        opened(nvml)


def test_no_gpu_is_a_full_answer(nvml: FakeNvml) -> None:
    """Rule: a driver without GPUs lists none and is no error."""
    nvml.write()
    assert opened(nvml).list_devices() == []


def test_a_library_without_half_its_functions(nvml: FakeNvml, half_nvml_library: Path) -> None:
    """Rule: with an old driver the GPU is found and read, and every absence has its reason."""
    nvml.library = str(half_nvml_library)
    nvml.write(H100)
    backend = opened(nvml)
    device = backend.require("cuda:0")
    assert (device.compute_capability, device.pci_address, device.clock_rate_mhz) == (None,) * 3
    assert device.hardware_id == uuid(0)
    sample = backend.read("cuda:0")
    assert sample.missing_reasons == {"clock_rate_mhz": "this driver does not offer it"}
    assert (sample.power_watts, sample.memory_reserved_bytes) == (123.456, None)


def test_nvml_is_opened_anew_in_a_forked_child(nvml: FakeNvml) -> None:
    """Rule: NVML does not survive a fork, and a child that reads opens it for itself."""
    nvml.write(H100)
    program = (
        "import os, sys\n"
        "from exo.gpu.backends.cuda import CudaBackend\n"
        "backend = CudaBackend(library=sys.argv[1])\n"
        "backend.find()\n"
        "child = os.fork()\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
        "print(backend.read('cuda:0').temperature_celsius, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, nvml.library], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["55", "55"]


def test_nvml_is_opened_anew_after_it_was_closed_underneath(nvml: FakeNvml) -> None:
    """Rule: UNINITIALIZED, as after a driver reload, costs one re-opening and no sample."""
    import pynvml

    nvml.write(H100)
    backend = opened(nvml)
    pynvml.nvmlShutdown()
    assert backend.read("cuda:0").temperature_celsius == 55


def test_a_driver_that_stays_closed(nvml: FakeNvml) -> None:
    """Rule: when opening again fails too, the reason says so."""
    import pynvml

    nvml.write(H100)
    backend = opened(nvml)
    pynvml.nvmlShutdown()
    nvml.change("init", "!9")
    with pytest.raises(BackendUnavailable, match="not loaded"):
        backend.read("cuda:0")


def test_an_answer_that_keeps_failing(nvml: FakeNvml) -> None:
    """Rule: a library that says "uninitialised" even when it was just opened ends in an error."""
    nvml.write(H100)
    backend = opened(nvml)
    nvml.change("0.power", "!1")
    with pytest.raises(BackendError, match="Uninitialized"):
        backend.read("cuda:0")


def test_a_hanging_gpu_holds_up_no_other(nvml: FakeNvml, tmp_path: Path) -> None:
    """Rule: while one GPU's driver call hangs, the other is read, and shutdown ends."""
    nvml.write(H100, T4)
    backend = opened(nvml)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    nvml.change("0.block", fifo)
    hanging = threading.Thread(target=backend.read, args=("cuda:0",), daemon=True)
    hanging.start()
    with fifo.open("wb"):  # returns when the call has begun to wait for the end
        assert backend.read("cuda:1").temperature_celsius == 55
        nvml.change("0.block", None)
    hanging.join()
    anyio.run(backend.shutdown)


def test_a_binding_that_breaks_costs_one_reading(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: at the vendor-read border any failure of the binding is a reason, logged."""
    import pynvml

    def broken(handle: object) -> int:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "nonsense")

    nvml.write(H100)
    backend = opened(nvml)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", broken)
    sample = backend.read("cuda:0")
    assert sample.power_watts is None
    assert "nonsense" in sample.missing_reasons["power_watts"]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", broken)
    assert backend.find()[0].name == "NVIDIA GPU"


def test_shutdown_is_harmless_twice(nvml: FakeNvml) -> None:
    """Rule: after shutdown no device is known, and a second one does nothing."""
    nvml.write(H100)
    backend = opened(nvml)
    anyio.run(backend.shutdown)
    anyio.run(backend.shutdown)
    assert backend.list_devices() == []


# Visibility and pinning


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
