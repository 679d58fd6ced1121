"""AMD cards from sysfs trees that the tests make."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS
from tests.backends.sysfs import ARC, RX, at, broken_file, card, client, table

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
    assert not set(sample.missing_reasons) & set(READINGS)


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
    real_open = os.open

    def watch(path: str, *arguments: int) -> int:
        touched.append(Path(path).name)
        return real_open(path, *arguments)

    monkeypatch.setattr(os, "open", watch)
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
    assert device.hardware_id == "0000:03:00.0"
    assert backend.read("rocm:0").memory_used_bytes == 3 * GIB


SENSORS = "device/hwmon/hwmon3"
MORE = {
    "device/mem_busy_percent": "7",
    f"{SENSORS}/temp3_label": "mem",
    f"{SENSORS}/temp3_input": "80000",
    f"{SENSORS}/freq2_label": "mclk",
    f"{SENSORS}/freq2_input": "1250000000",
    f"{SENSORS}/power1_cap": "339000000",
    f"{SENSORS}/fan1_input": "1500",
    f"{SENSORS}/fan1_max": "3000",
    "device/pp_dpm_pcie": "0: 2.5GT/s, x16 619Mhz\n1: 16.0GT/s, x8 619Mhz *",
    "device/ras/umc_err_count": "ue: 2\nce: 40",
    "device/ras/gfx_err_count": "ue: 1\nce: 2",
    "device/ras/features": "feature mask: 0x1",
}


def test_all_that_sysfs_tells_is_read(tmp_path: Path) -> None:
    """Rule: limits, fans, memory, link and error counts come out in base units too."""
    card(tmp_path, 0, RX, MORE)
    sample = opened(tmp_path).read("rocm:0")
    assert (sample.memory_utilization_percent, sample.memory_clock_mhz) == (7, 1250)
    assert (sample.hotspot_temperature_celsius, sample.memory_temperature_celsius) == (71, 80)
    assert (sample.power_limit_watts, sample.fan_percent) == (339, 50)
    assert (sample.pcie_generation, sample.pcie_width) == (4, 8)
    assert (sample.corrected_errors, sample.uncorrected_errors) == (42, 3)
    assert sample.power_window_seconds is None


def test_dear_readings_are_not_touched_by_a_quick_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: errors, fan, power limit and link stay as they were and are named; the rest is new."""
    folder = card(tmp_path, 0, RX, MORE)
    backend = opened(tmp_path)
    before = backend.read("rocm:0")
    (folder / "device/ras/umc_err_count").write_text("ue: 7\nce: 70\n")
    (folder / "device/gpu_busy_percent").write_text("88\n")
    touched: list[str] = []
    real_open = os.open

    def watch(path: str, *arguments: int) -> int:
        touched.append(Path(path).name)
        return real_open(path, *arguments)

    monkeypatch.setattr(os, "open", watch)
    quick = backend.read_quickly("rocm:0", before)
    assert not {"power1_cap", "fan1_input", "pp_dpm_pcie", "umc_err_count"} & set(touched)
    assert set(quick.carried_readings) == {
        "power_limit_watts",
        "fan_percent",
        "corrected_errors",
        "uncorrected_errors",
        "pcie_generation",
        "pcie_width",
    }
    assert (quick.corrected_errors, quick.pcie_width) == (42, 8)
    assert quick.compute_utilization_percent == 88
    assert quick.missing_reasons == before.missing_reasons


def test_sensors_that_move_are_found_again(tmp_path: Path) -> None:
    """Rule: a driver bound anew may number its sensors otherwise; the next reading finds them."""
    folder = card(tmp_path, 0, RX)
    backend = opened(tmp_path)
    assert backend.read("rocm:0").temperature_celsius == 61.5
    (folder / SENSORS).rename(folder / "device/hwmon/hwmon9")
    (folder / "device/hwmon/hwmon9/temp2_input").write_text("44000\n")
    assert backend.read("rocm:0").temperature_celsius == 44


def test_power_of_the_instant_says_so(tmp_path: Path) -> None:
    """Rule: power1_input is of the moment, and the window of an average is not told."""
    folder = card(tmp_path, 0, RX, {f"{SENSORS}/power1_average": None})
    (folder / SENSORS / "power1_input").write_text("31000000")
    assert opened(tmp_path).read("rocm:0").power_window_seconds == 0


def test_a_card_without_sensors_is_read_from_its_table(tmp_path: Path) -> None:
    """Rule: server cards without hwmon tell temperature, power and clocks in gpu_metrics."""
    bare = {name: None for name in RX if "hwmon" in name}
    folder = card(tmp_path, 0, RX, bare, {"device/gpu_busy_percent": None})
    fields = [(10, "H", 320), (12, "H", 88), (24, "Q", 2**20), (40, "I", 0), (240, "H", 2100)]
    (folder / "device/gpu_metrics").write_bytes(table((1, 4), (4, "H", 61), *fields))
    sample = opened(tmp_path).read("rocm:0")
    assert (sample.power_watts, sample.hotspot_temperature_celsius) == (320, 61)
    assert (sample.compute_utilization_percent, sample.clock_rate_mhz) == (88, 2100)
    assert (sample.energy_joules, sample.throttle_reasons) == (16, ())
    assert not sample.utilization_is_lower_bound
    assert sample.missing_reasons["temperature_celsius"].startswith("the driver shows no hwmon")
    assert "gpu_metrics 1.4" in sample.missing_reasons["temperature_celsius"]


def test_clock_levels_stand_in_for_sensors(tmp_path: Path) -> None:
    """Rule: without a clock sensor the level in use counts; several, or none, are not guessed."""
    bare = {name: None for name in RX if "freq1" in name}
    levels = {
        "device/pp_dpm_sclk": "0: 500Mhz\n1: 1800Mhz *",
        "device/pp_dpm_mclk": "0: 96Mhz",
        "device/pp_dpm_pcie": "0: 8.0GT/s, x16 *\n1: 16.0GT/s, x16 *",
    }
    card(tmp_path, 0, RX, bare, levels)
    sample = opened(tmp_path).read("rocm:0")
    assert (sample.clock_rate_mhz, sample.memory_clock_mhz) == (1800, None)
    assert "marks no level" in sample.missing_reasons["memory_clock_mhz"]
    assert "marks 2 levels" in sample.missing_reasons["pcie_width"]


@pytest.mark.parametrize(
    ("file", "text", "reading", "reason"),
    [
        ("device/ras/umc_err_count", "what", "corrected_errors", "holds 'what'"),
        ("device/pp_dpm_pcie", "0: 3.3GT/s, x4 *", "pcie_generation", "3.3 GT/s"),
        (f"{SENSORS}/pwm1", "300", "fan_percent", "holds 300"),
        (f"{SENSORS}/power1_cap", "lots", "power_limit_watts", "no number"),
    ],
)
def test_garbage_in_a_file_is_named(
    tmp_path: Path, file: str, text: str, reading: str, reason: str
) -> None:
    """Rule: what cannot be understood is missing with its text, and the rest is read."""
    card(tmp_path, 0, RX, {file: text})
    sample = opened(tmp_path).read("rocm:0")
    assert getattr(sample, reading) is None
    assert reason in sample.missing_reasons[reading]
    assert sample.power_watts == 250.5


@pytest.mark.parametrize("code", [errno.EIO, errno.EBUSY, errno.EPERM, errno.EINVAL])
@pytest.mark.parametrize(
    "file", ["gpu_metrics", "gpu_busy_percent", "temp2_input", "umc_err_count"]
)
def test_errors_of_the_system_end_in_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, file: str
) -> None:
    """Rule: a file that cannot be read takes away its readings only, each with the reason."""
    folder = card(tmp_path, 0, RX, MORE, {"device/ras/gfx_err_count": None})
    (folder / "device/gpu_metrics").write_bytes(table((1, 3), (112, "Q", 0)))
    backend = opened(tmp_path)
    broken_file(monkeypatch, file, code)
    sample = backend.read("rocm:0")
    lost = {
        "gpu_metrics": "throttle_reasons",
        "gpu_busy_percent": "compute_utilization_percent",
        "temp2_input": "temperature_celsius",
        "umc_err_count": "corrected_errors",
    }[file]
    assert getattr(sample, lost) is None
    assert file in sample.missing_reasons[lost]
    assert sample.power_watts == 250.5
    opened(tmp_path)


def test_a_card_that_goes_while_cards_are_found_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: "no such device" on one card leaves the others, and is told in the remark."""
    card(tmp_path, 0, RX)
    second = {"device/product_name": None, "device/unique_id": "1111222233334444"}
    card(tmp_path, 1, RX, second, at("0000:04:00.0", "1002:744C", "amdgpu"))
    broken_file(monkeypatch, "product_name", errno.ENODEV)
    backend = opened(tmp_path)
    assert [device.hardware_id for device in backend.list_devices()] == ["GPU-1111222233334444"]
    assert "card0" in backend.remark


def test_work_of_visible_programs_is_a_lower_bound(tmp_path: Path) -> None:
    """Rule: without a busy file the programs that we may see are counted, labelled as such."""
    root, proc = tmp_path / "drm", tmp_path / "proc"
    card(root, 0, RX, {"device/gpu_busy_percent": None})
    seconds = iter([1.0, 2.0])
    backend = RocmBackend(environ={}, root=root, proc=proc, clock=lambda: next(seconds))
    backend.find()
    assert (
        "cannot be listed"
        in (backend.read("rocm:0").missing_reasons["compute_utilization_percent"])
    )
    text = "drm-client-id: 1\ndrm-pdev: 0000:03:00.0\ndrm-engine-compute: {} ns\n"
    client(proc, 70, 5, text.format(10**9))
    first = backend.read("rocm:0")
    assert first.compute_utilization_percent is None
    assert "two readings" in first.missing_reasons["compute_utilization_percent"]
    client(proc, 70, 5, text.format(10**9 + 3 * 10**8))
    second = backend.read("rocm:0")
    assert second.compute_utilization_percent == pytest.approx(30)
    assert second.utilization_is_lower_bound
    assert "compute_utilization_percent" not in second.missing_reasons


def test_a_card_is_named_by_the_driver_or_by_its_ids(tmp_path: Path) -> None:
    """Rule: its own name, else the marketing name of its ids and revision, else the ids."""
    nameless = {"device/product_name": "", "device/revision": "0xc8"}
    card(tmp_path, 0, RX, nameless)
    names = tmp_path / "amdgpu.ids"
    names.write_text("# ids\n1.0.0\n744C, CC, Radeon Pro\n744C,\tC8,\tRadeon RX 7900 XTX\n")

    def name(path: Path) -> str:
        (device,) = RocmBackend(environ={}, root=tmp_path, names=path).find()
        return device.name

    assert name(names) == "Radeon RX 7900 XTX"
    assert name(tmp_path / "absent") == "AMD GPU [1002:744c]"
    names.write_text("744C, C8, \n")
    assert name(names) == "AMD GPU [1002:744c]"


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
