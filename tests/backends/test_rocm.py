"""AMD cards from sysfs trees that the tests make, and from captured ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS
from tests.backends.sysfs import ARC, RX, at, captured, card

GIB = 2**30


def opened(root: Path, **environ: str) -> RocmBackend:
    backend = RocmBackend(environ=environ, root=root)
    backend.find()
    return backend


def test_a_card_is_found_with_its_identity(tmp_path: Path) -> None:
    """Rule: the unique id is the identity; name, memory and PCI address come along."""
    card(tmp_path, 0, ARC)
    card(tmp_path, 1, RX)
    (device,) = opened(tmp_path).list_devices()
    assert (device.device_id, device.name, device.vendor) == ("rocm:0", "Radeon RX 7900 XTX", "AMD")
    assert (device.hardware_id, device.pci_address) == ("GPU-b6c8ee2f5e6e3b2a", "0000:03:00.0")
    assert (device.memory_bytes, device.runtime) == (24 * GIB, "rocm")
    assert device.memory_pool == device.hardware_id


def test_readings_are_in_base_units(tmp_path: Path) -> None:
    """Rule: microwatts, millidegrees and hertz become watts, degrees and MHz; the edge counts."""
    card(tmp_path, 0, RX)
    sample = opened(tmp_path).read("rocm:0")
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (GIB, 24 * GIB)
    assert sample.compute_utilization_percent == 42
    assert (sample.power_watts, sample.temperature_celsius) == (250.5, 61.5)
    assert sample.clock_rate_mhz == 2400
    assert sample.missing_reasons == {}


def test_newer_cards_give_power_under_another_name(tmp_path: Path) -> None:
    """Rule: power1_input stands in where there is no power1_average."""
    folder = "device/hwmon/hwmon3"
    newer = {f"{folder}/power1_average": None, f"{folder}/power1_input": "31000000"}
    card(tmp_path, 0, RX, newer)
    assert opened(tmp_path).read("rocm:0").power_watts == 31


@pytest.mark.parametrize("status", ["suspended", "suspending"])
def test_a_sleeping_card_is_not_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """Rule: a suspended card is reported as sleeping, and no sensor of it is touched."""
    card(tmp_path, 0, RX, {"device/power/runtime_status": status})
    backend = opened(tmp_path)
    assert backend.require("rocm:0").hardware_id == "GPU-b6c8ee2f5e6e3b2a"
    touched: list[str] = []
    read_text = Path.read_text

    def watch(path: Path, **options: str) -> str:
        touched.append(path.name)
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", watch)
    sample = backend.read("rocm:0")
    assert sample.sleeping
    assert set(sample.missing_reasons) == set(READINGS)
    assert touched == ["runtime_status"]


def test_graphics_inside_a_processor_share_the_machines_memory(tmp_path: Path) -> None:
    """Rule: the format of gpu_metrics tells an APU; its memory is its own plus what is mapped."""
    folder = card(
        tmp_path,
        0,
        RX,
        {
            "device/unique_id": None,
            "device/product_name": "",
            "device/mem_info_gtt_total": str(30 * GIB),
            "device/mem_info_gtt_used": str(2 * GIB),
        },
    )
    (folder / "device/gpu_metrics").write_bytes(bytes([0x78, 0, 2, 1]) + bytes(116))
    backend = opened(tmp_path)
    device = backend.require("rocm:0")
    assert (device.memory_bytes, device.memory_pool) == (54 * GIB, HOST_POOL)
    assert (device.hardware_id, device.name) == ("0000:03:00.0", "AMD GPU [1002:744c]")
    assert backend.read("rocm:0").memory_used_bytes == 3 * GIB


def test_impossible_memory_is_absent_with_a_reason(tmp_path: Path) -> None:
    """Rule: more used than there is, or used without a total, gives no used memory."""
    card(tmp_path, 0, RX, {"device/mem_info_vram_used": str(25 * GIB)})
    sample = opened(tmp_path).read("rocm:0")
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, 24 * GIB)
    assert "total" in sample.missing_reasons["memory_used_bytes"]


def test_a_card_that_gives_nothing_is_an_error(tmp_path: Path) -> None:
    """Rule: a sample without a single reading is no sample."""
    card(tmp_path, 0, at("0000:03:00.0", "1002:744C", "amdgpu"))
    backend = opened(tmp_path)
    assert backend.require("rocm:0").memory_bytes is None
    with pytest.raises(BackendError, match="gave no reading"):
        backend.read("rocm:0")


def test_without_the_driver_the_reason_names_it(tmp_path: Path) -> None:
    """Rule: no amdgpu card means an absent backend, with the driver to load."""
    card(tmp_path, 0, at("0000:03:00.0", "1002:6779", "radeon"))
    with pytest.raises(BackendUnavailable, match="amdgpu"):
        opened(tmp_path)


# Visibility and pinning


def test_a_process_is_pinned_by_unique_id_and_other_lists_are_removed(tmp_path: Path) -> None:
    """Rule: ROCR_VISIBLE_DEVICES alone; HIP's and CUDA's lists would renumber what it leaves."""
    card(tmp_path, 0, RX)
    backend = opened(tmp_path)
    assert backend.pinning([backend.require("rocm:0")], {}) == {
        "ROCR_VISIBLE_DEVICES": "GPU-b6c8ee2f5e6e3b2a",
        "HIP_VISIBLE_DEVICES": None,
        "CUDA_VISIBLE_DEVICES": None,
        "GPU_DEVICE_ORDINAL": None,
    }
    assert backend.hiding() == {"ROCR_VISIBLE_DEVICES": "-1"}


def test_an_index_pins_only_where_there_is_one_card(tmp_path: Path) -> None:
    """Rule: without unique ids ROCm's numbers are sure for a single card only."""
    bare = {"device/unique_id": "0000000000000000"}
    card(tmp_path, 0, RX, bare)
    backend = opened(tmp_path)
    device = backend.require("rocm:0")
    assert backend.pinning([device], {})["ROCR_VISIBLE_DEVICES"] == "0"
    card(tmp_path, 1, RX, bare, at("0000:04:00.0", "1002:744C", "amdgpu"))
    two = opened(tmp_path)
    with pytest.raises(BackendError, match="no unique id"):
        two.pinning([two.require("rocm:1")], {})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["rocm:0", "rocm:1"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-b6c8ee2f5e6e3b2a"}, ["rocm:0"]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "1,0"}, ["rocm:0", "rocm:1"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-1111", "HIP_VISIBLE_DEVICES": "0"}, ["rocm:1"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-1111", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"HIP_VISIBLE_DEVICES": "0"}, []),
        ({"GPU_DEVICE_ORDINAL": "-1"}, []),
    ],
)
def test_inherited_lists_are_the_universe(
    tmp_path: Path, environ: dict[str, str], expected: list[str]
) -> None:
    """Rule: the lists compose, end at their first flaw, and unclear indices leave nothing."""
    card(tmp_path, 0, RX)
    second = {"device/unique_id": "1111222233334444"}
    card(tmp_path, 1, RX, second, at("0000:04:00.0", "1002:744C", "amdgpu"))
    backend = opened(tmp_path, **environ)
    assert [device.device_id for device in backend.list_devices()] == expected
    assert bool(backend.remark) == (len(expected) < 2)
    everything = opened(tmp_path)
    for device in everything.list_devices():
        if device.device_id not in expected:
            with pytest.raises(BackendError, match="hidden"):
                everything.pinning([device], environ)


# Captured trees of real machines: expected values written by hand from the raw files


@pytest.mark.shows("rocm", "telemetry", "captured")
@pytest.mark.shows("rocm", "finding", "captured")
@pytest.mark.parametrize(
    ("model", "address", "total", "used", "busy", "watts", "celsius", "mhz"),
    [
        ("rx580", "0000:09:00.0", 4294967296, 536870912, 11, 41.045, 44, 798.08),
        ("vega56", "0000:0b:00.0", 8573157376, 16613376, 0, 8, 38, 26),
        ("rx7900xtx", "0000:03:00.0", None, None, 3, 68, 53, 31),
        (
            "phoenix",
            "0000:64:00.0",
            4294967296 + 31433977856,
            1272893440 + 211398656,
            0,
            3.103,
            25,
            800,
        ),
    ],
)
def test_captured_cards_are_read_with_the_right_units(
    shown_on: Callable[[str, str], None],
    model: str,
    address: str,
    total: int | None,
    used: int | None,
    busy: float,
    watts: float,
    celsius: float,
    mhz: float,
) -> None:
    """Rule: every documented reading of a real card's tree comes out in base units."""
    backend = opened(captured("amd", model))
    shown_on(model, "amdgpu")
    (device,) = backend.list_devices()
    assert (device.pci_address, device.memory_bytes) == (address, total)
    sample = backend.read("rocm:0")
    assert (sample.memory_total_bytes, sample.memory_used_bytes) == (total, used)
    assert sample.compute_utilization_percent == busy
    assert sample.power_watts == pytest.approx(watts)
    assert (sample.temperature_celsius, sample.clock_rate_mhz) == (celsius, pytest.approx(mhz))
