"""Captured sysfs trees of six real machines: all readings, by hand from the raw files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.backends.rocm import RocmBackend
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.metrics import GPUMetrics
from tests.backends.sysfs import captured

NO_PROCESSES = "/nonexistent/proc"

# Model -> what the kernel's files of its tree hold, in base units; all other readings are None.
AMD: dict[str, dict[str, Any]] = {
    "rx580": {
        "memory_used_bytes": 536870912,  # mem_info_vram_used
        "memory_total_bytes": 4294967296,  # mem_info_vram_total
        "compute_utilization_percent": 11,  # gpu_busy_percent
        "memory_utilization_percent": 2,  # mem_busy_percent
        "power_watts": 41.045,  # power1_average 41045000 uW
        "power_limit_watts": 155,  # power1_cap 155000000 uW
        "temperature_celsius": 44,  # temp1_input (edge) 44000
        "clock_rate_mhz": 798.08,  # freq1_input (sclk) 798080000 Hz
        "memory_clock_mhz": 1750,  # freq2_input (mclk) 1750000000 Hz
        "fan_percent": 13.7,  # pwm1 35 of 255
        "pcie_generation": 3,  # pp_dpm_pcie "1: 8.0GT/s, x16 *"
        "pcie_width": 16,
    },
    "vega56": {
        "memory_used_bytes": 16613376,
        "memory_total_bytes": 8573157376,
        "compute_utilization_percent": 0,
        "power_watts": 8,  # power1_average 8000000 uW
        "power_limit_watts": 260,
        "temperature_celsius": 38,  # temp1_input (edge)
        "hotspot_temperature_celsius": 38,  # temp2_input (junction)
        "memory_temperature_celsius": 39,  # temp3_input (mem)
        "clock_rate_mhz": 26,  # freq1_input (sclk) 26000000 Hz
        "memory_clock_mhz": 167,  # freq2_input (mclk)
        "fan_percent": 0,  # pwm1 0 of 255
        "pcie_generation": 3,
        "pcie_width": 16,
    },
    "rx7900xtx": {
        "compute_utilization_percent": 3,
        "power_watts": 68,
        "power_limit_watts": 290,
        "temperature_celsius": 53,
        "hotspot_temperature_celsius": 61,
        "memory_temperature_celsius": 68,
        "clock_rate_mhz": 31,
        "memory_clock_mhz": 1249,
        "fan_percent": 0,
        "pcie_generation": 4,  # current_link_speed 16.0 GT/s, all levels of pp_dpm_pcie too
        "pcie_width": 16,
    },
    "phoenix": {
        "memory_used_bytes": 1272893440 + 211398656,  # vram + gtt, in the machine's memory
        "memory_total_bytes": 4294967296 + 31433977856,
        "compute_utilization_percent": 0,
        "power_watts": 3.103,  # power1_average 3103000 uW
        "temperature_celsius": 25,  # temp1_input (edge); gpu_metrics: 0x09c4 hundredths
        "clock_rate_mhz": 800,  # freq1_input (sclk)
        "memory_clock_mhz": 400,  # gpu_metrics: 0x0190; pp_dpm_mclk "0: 400Mhz *"
        "throttle_reasons": (),  # gpu_metrics: status 0
        "pcie_generation": 4,  # current_link_speed 16.0 GT/s
        "pcie_width": 16,
    },
}
INTEL: dict[str, dict[str, Any]] = {
    "a380-xe": {
        "power_limit_watts": 55,  # power2_max (pkg) 55000000 uW
        "energy_joules": 59540.97052,  # energy2_input (pkg) 59540970520 uJ
        "temperature_celsius": 56,  # temp2_input (pkg)
        "memory_temperature_celsius": 54,  # temp3_input (vram)
        "clock_rate_mhz": 0,  # act_freq: the GT is powered down
        "throttle_reasons": (),  # status 0
    },
    "b580": {
        "power_limit_watts": 190,  # power1_cap (card) 190000000 uW
        "energy_joules": 11031.745544,  # energy1_input (card) 11031745544 uJ
        "temperature_celsius": 54,
        "memory_temperature_celsius": 56,
        "clock_rate_mhz": 0,
        "fan_percent": 57.2,  # the fastest: fan2_input 1235 of fan2_max 2160
        "throttle_reasons": (),
    },
}

# Model -> PCI address, bytes of memory, largest clock in MHz, identity.
IDENTITIES = {
    "rx580": ("0000:09:00.0", 4294967296, 1366, "AMD GPU [1002:67df]"),
    "vega56": ("0000:0b:00.0", 8573157376, 1590, "AMD GPU [1002:687f]"),
    "rx7900xtx": ("0000:03:00.0", None, 2219, "AMD GPU [1002:744c]"),
    "phoenix": ("0000:64:00.0", 4294967296 + 31433977856, 2700, "AMD GPU [1002:15bf]"),
    "a380-xe": ("0000:08:00.0", None, 2450, "Intel GPU [8086:56a5]"),
    "b580": ("0000:09:00.0", None, 2850, "Intel GPU [8086:e20b]"),
}

_NOT_READINGS = {"device_id", "timestamp", "missing_reasons", "sleeping", "carried_readings"}
# What goes with a reading rather than being one.
_BESIDE = {
    "throttle_kinds",
    "utilization_is_lower_bound",
    "power_window_seconds",
    "memory_reserved_bytes",
}


def amd(model: str) -> RocmBackend:
    root = captured("amd", model)
    return RocmBackend(
        environ={},
        root=root,
        proc=NO_PROCESSES,
        names="/nonexistent",
        topology=root / "kfd/topology",
    )


def intel(model: str, clock: Iterator[float]) -> LevelZeroBackend:
    root = captured("intel", model)
    return LevelZeroBackend(environ={}, root=root, proc=NO_PROCESSES, clock=lambda: next(clock))


def told(sample: GPUMetrics) -> dict[str, Any]:
    """The readings that are not None, after a look that the others have their reason."""
    fields = msgspec.structs.asdict(sample)
    readings = {name: fields[name] for name in fields if name not in _NOT_READINGS | _BESIDE}
    given = {name: value for name, value in readings.items() if value is not None}
    assert not set(given) & set(sample.missing_reasons)
    return given


@pytest.mark.shows("rocm", "telemetry", "captured")
@pytest.mark.shows("rocm", "finding", "captured")
@pytest.mark.parametrize("model", AMD)
def test_amd_cards_are_read_completely(shown_on: Callable[[str, str], None], model: str) -> None:
    """Rule: every documented reading of a real card's tree comes out in base units."""
    backend = amd(model)
    shown_on(model, "amdgpu")
    (device,) = backend.find()
    assert (
        device.pci_address,
        device.memory_bytes,
        device.clock_rate_mhz,
        device.name,
    ) == IDENTITIES[model]
    assert (device.memory_pool == HOST_POOL) == (model == "phoenix")
    # kfd/topology/nodes/1: simd_count 24, simd_per_cu 2, gfx_target_version 110003
    expected = (12, "gfx1103") if model == "phoenix" else (None, None)
    assert (device.compute_units, device.compute_capability) == expected
    sample = backend.read("rocm:0")
    assert told(sample) == AMD[model]
    for reading in ("corrected_errors", "energy_joules"):
        assert sample.missing_reasons[reading]


@pytest.mark.shows("level_zero", "telemetry", "captured")
@pytest.mark.shows("level_zero", "finding", "captured")
@pytest.mark.parametrize("model", INTEL)
def test_intel_cards_are_read_completely(shown_on: Callable[[str, str], None], model: str) -> None:
    """Rule: as for AMD; rates need a second reading, and a still counter is a rate of 0."""
    backend = intel(model, iter([10.0, 11.0, 12.0, 13.0]))
    shown_on(model, "xe")
    (device,) = backend.find()
    assert (
        device.pci_address,
        device.memory_bytes,
        device.clock_rate_mhz,
        device.name,
    ) == IDENTITIES[model]
    first = backend.read("level_zero:0")
    assert told(first) == INTEL[model]
    for reading in ("power_watts", "compute_utilization_percent"):
        assert "two readings" in first.missing_reasons[reading]
    for reading in ("pcie_generation", "pcie_width"):
        assert "within itself" in first.missing_reasons[reading]
    again = told(backend.read("level_zero:0"))
    assert again["power_watts"] == 0
    assert again["compute_utilization_percent"] == 100


@pytest.mark.parametrize("length", [0, 2, 60, 119])
def test_a_truncated_table_leaves_the_other_readings(tmp_path: Path, length: int) -> None:
    """Rule: a cut gpu_metrics takes away what it alone tells, with the reason, and no more."""
    source = captured("amd", "phoenix")
    shutil.copytree(source / "card1", tmp_path / "card1")
    table = tmp_path / "card1/device/gpu_metrics"
    table.write_bytes((source / "card1/device/gpu_metrics").read_bytes()[:length])
    backend = RocmBackend(environ={}, root=tmp_path, proc=NO_PROCESSES)
    backend.find()
    sample = backend.read("rocm:0")
    assert (sample.temperature_celsius, sample.clock_rate_mhz) == (25, 800)
    assert sample.memory_clock_mhz == 400
    assert "cut short" in sample.missing_reasons["throttle_reasons"]
