"""NVIDIA devices through the real pynvml on a fake driver library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from exo.gpu.backends.cuda import CudaBackend
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, DeviceLost
from tests.backends.nvml.fake_nvml import GIB, H100, T4, FakeNvml, uuid
from tests.backends.nvml.opening import closed, ids, opened

__all__ = ["closed"]


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
    not_offered = {
        name
        for name, reason in sample.missing_reasons.items()
        if reason == "this driver does not offer it"
    }
    assert not_offered == {"clock_rate_mhz", "memory_clock_mhz"}
    assert (sample.power_watts, sample.memory_reserved_bytes) == (120, None)
    assert sample.memory_used_bytes == 10 * GIB + GIB // 2


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


def test_a_reading_during_another_search_is_asked_again(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: when a search opens NVML anew in the midst of a reading, no part of it is missing."""
    import pynvml

    nvml.write(H100)
    backend = opened(nvml)
    ask = pynvml.nvmlDeviceGetTotalEnergyConsumption
    searches = [backend.find]

    def searched(handle: object) -> int:
        if searches:
            searches.pop()()
        return ask(handle)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", searched)
    sample = backend.read("cuda:0")
    assert (sample.energy_joules, sample.pcie_width) == (pytest.approx(987_654.321), 16)


@pytest.mark.parametrize(("display", "drives"), [(1, True), (0, False), ("!3", None)])
def test_which_gpu_drives_a_display(nvml: FakeNvml, display: object, drives: bool | None) -> None:
    """Rule: yes, no and unknown differ."""
    nvml.write(H100 | {"display": display})
    assert opened(nvml).require("cuda:0").drives_display is drives


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
    nvml.change("0.fan", "!1")
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
    monkeypatch.setattr(pynvml, "nvmlDeviceGetFanSpeed", broken)
    sample = backend.read("cuda:0")
    assert sample.fan_percent is None
    assert "nonsense" in sample.missing_reasons["fan_percent"]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", broken)
    assert backend.find()[0].name == "NVIDIA GPU"


def test_shutdown_is_harmless_twice(nvml: FakeNvml) -> None:
    """Rule: after shutdown no device is known, and a second one does nothing."""
    nvml.write(H100)
    backend = opened(nvml)
    anyio.run(backend.shutdown)
    anyio.run(backend.shutdown)
    assert backend.list_devices() == []
