"""AMD's binary table: every known version, absent values, and tables that are no tables."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.backends import gpu_metrics
from exo.gpu.vocabulary.errors import ReadingMissing
from exo.gpu.vocabulary.metrics import GPUMetrics
from tests.backends.sysfs import TABLE_SIZES, table

# Version -> (offset, C code, value) of the fields read here, counted by hand from the structures.
FILLED = {
    (1, 0): [
        (16, "H", 55),  # temperature_edge
        (18, "H", 66),  # temperature_hotspot
        (20, "H", 77),  # temperature_mem
        (28, "H", 42),  # average_gfx_activity
        (30, "H", 12),  # average_umc_activity
        (34, "H", 180),  # average_socket_power
        (54, "H", 1800),  # current_gfxclk
        (58, "H", 875),  # current_uclk
        (68, "I", 0),  # throttle_status
        (74, "B", 16),  # pcie_link_width
        (75, "B", 160),  # pcie_link_speed
    ],
    (1, 3): [
        (4, "H", 55),
        (6, "H", 66),
        (8, "H", 77),
        (16, "H", 42),
        (18, "H", 12),
        (22, "H", 180),
        (54, "H", 1800),
        (58, "H", 875),
        (74, "H", 16),
        (76, "H", 160),
        (112, "Q", 1 << 36 | 1 << 0 | 1 << 60),  # indep_throttle_status
    ],
    (1, 4): [
        (4, "H", 66),
        (6, "H", 77),
        (10, "H", 180),
        (12, "H", 42),
        (14, "H", 12),
        (24, "Q", 3 * 2**16),  # energy_accumulator
        (40, "I", 1 << 5),
        (48, "H", 16),
        (50, "H", 320),
        (240, "H", 1200),  # current_gfxclk of the first of eight dies
        (244, "H", 1800),
        (280, "H", 875),
    ],
    (1, 5): [(56 + 32, "Q", 5 * 2**16), (280 + 32, "H", 2100), (320 + 32, "H", 1300)],
    (1, 6): [
        (4, "H", 66),
        (6, "H", 77),
        (10, "H", 180),
        (12, "H", 42),
        (14, "H", 12),
        (16, "Q", 3 * 2**16),
        (36, "I", 9),  # prochot_residency_acc, which is no bit mask
        (60, "H", 16),
        (62, "H", 320),
        (266, "H", 1800),  # current_gfxclk of the second of eight dies
        (304, "H", 875),
    ],
    (1, 7): [
        (10, "H", 180),
        (16, "Q", 5300),  # mem_max_bandwidth
        (24, "Q", 3 * 2**16),
        (68, "H", 16),
        (70, "H", 640),
        (264, "H", 1),  # xgmi_link_status
        (298, "H", 1800),
        (336, "H", 875),
    ],
    (1, 8): [(24, "Q", 5 * 2**16), (296, "H", 2100), (336, "H", 1300)],
    (2, 4): [
        (4, "H", 5530),  # temperature_gfx in hundredths
        (28, "H", 4250),  # average_gfx_activity in hundredths
        (40, "H", 15250),  # average_socket_power in mW
        (64, "H", 1400),  # average_gfxclk_frequency
        (80, "H", 800),  # current_uclk
        (120, "Q", 1 << 47),
    ],
    (3, 0): [
        (4, "H", 5530),
        (42, "H", 37),
        (112, "I", 15250),
        (174, "H", 1400),
        (186, "H", 800),
    ],
}


@pytest.mark.parametrize("version", TABLE_SIZES)
def test_what_is_not_given_is_absent(version: tuple[int, int]) -> None:
    """Rule: all ones in a field of any width means that the driver does not tell it."""
    values, missing = gpu_metrics.readings(table(version))
    assert values == {}
    assert {"power_watts", "clock_rate_mhz", "throttle_reasons", "energy_joules"} <= set(missing)
    assert all("gpu_metrics" in reason for reason in missing.values())


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            (1, 0),
            {
                "temperature_celsius": 55,
                "hotspot_temperature_celsius": 66,
                "memory_temperature_celsius": 77,
                "compute_utilization_percent": 42,
                "memory_utilization_percent": 12,
                "power_watts": 180,
                "clock_rate_mhz": 1800,
                "memory_clock_mhz": 875,
                "pcie_generation": 4,
                "pcie_width": 16,
                "throttle_reasons": (),
            },
        ),
        (
            (1, 3),
            {
                "temperature_celsius": 55,
                "hotspot_temperature_celsius": 66,
                "memory_temperature_celsius": 77,
                "compute_utilization_percent": 42,
                "memory_utilization_percent": 12,
                "power_watts": 180,
                "clock_rate_mhz": 1800,
                "memory_clock_mhz": 875,
                "pcie_generation": 4,
                "pcie_width": 16,
                "throttle_reasons": ("ppt0", "temp_hotspot", "bit_60"),
            },
        ),
        (
            (1, 4),
            {
                "hotspot_temperature_celsius": 66,
                "memory_temperature_celsius": 77,
                "compute_utilization_percent": 42,
                "memory_utilization_percent": 12,
                "power_watts": 180,
                "energy_joules": 3,
                "clock_rate_mhz": 1800,
                "memory_clock_mhz": 875,
                "pcie_generation": 5,
                "pcie_width": 16,
                "throttle_reasons": ("status_bit_5",),
            },
        ),
        ((1, 5), {"energy_joules": 5, "clock_rate_mhz": 2100, "memory_clock_mhz": 1300}),
        (
            (1, 6),
            {
                "hotspot_temperature_celsius": 66,
                "memory_temperature_celsius": 77,
                "compute_utilization_percent": 42,
                "memory_utilization_percent": 12,
                "power_watts": 180,
                "energy_joules": 3,
                "clock_rate_mhz": 1800,
                "memory_clock_mhz": 875,
                "pcie_generation": 5,
                "pcie_width": 16,
            },
        ),
        (
            (1, 7),
            {
                "power_watts": 180,
                "energy_joules": 3,
                "clock_rate_mhz": 1800,
                "memory_clock_mhz": 875,
                "pcie_generation": 6,
                "pcie_width": 16,
            },
        ),
        ((1, 8), {"energy_joules": 5, "clock_rate_mhz": 2100, "memory_clock_mhz": 1300}),
        (
            (2, 4),
            {
                "temperature_celsius": 55.3,
                "compute_utilization_percent": 42.5,
                "power_watts": 15.25,
                "clock_rate_mhz": 1400,
                "memory_clock_mhz": 800,
                "throttle_reasons": ("prochot_gfx",),
            },
        ),
        (
            (3, 0),
            {
                "temperature_celsius": 55.3,
                "power_watts": 15.25,
                "clock_rate_mhz": 1400,
                "memory_clock_mhz": 800,
            },
        ),
    ],
)
def test_each_layout_is_read_at_its_offsets(
    version: tuple[int, int], expected: dict[str, object]
) -> None:
    """Rule: fields lie where the kernel's compiler puts them, and come out in base units."""
    values, missing = gpu_metrics.readings(table(version, *FILLED[version]))
    assert values == expected
    assert not set(values) & set(missing)


@pytest.mark.parametrize("version", [(2, 0), (2, 1), (2, 2), (2, 3)])
def test_units_that_differed_from_chip_to_chip_are_not_guessed(version: tuple[int, int]) -> None:
    """Rule: before 2.4 the power and the busy share of processors have no known unit."""
    values, missing = gpu_metrics.readings(
        bytes(table(version)[:4]) + bytes(TABLE_SIZES[version] - 4)
    )
    assert {"power_watts", "compute_utilization_percent"} <= set(missing)
    assert "tells no unit" in missing["power_watts"]
    assert values["temperature_celsius"] == 0


def test_a_share_above_a_hundred_is_no_reading() -> None:
    """Rule: a percentage that cannot be is missing with its value."""
    values, missing = gpu_metrics.readings(table((1, 3), (16, "H", 4200)))
    assert "compute_utilization_percent" not in values
    assert "4200" in missing["compute_utilization_percent"]


def test_a_link_of_no_lanes_is_no_link() -> None:
    """Rule: a width or speed of 0 is not told."""
    values, missing = gpu_metrics.readings(table((1, 3), (74, "H", 0), (76, "H", 0)))
    assert not {"pcie_width", "pcie_generation"} & set(values)
    assert {"pcie_width", "pcie_generation"} <= set(missing)


@pytest.mark.parametrize("length", [0, 3, 4, 60, 119])
def test_a_table_that_is_cut_short_is_named(length: int) -> None:
    """Rule: a truncated table gives nothing, and says how much of it came."""
    with pytest.raises(ReadingMissing, match="cut short"):
        gpu_metrics.readings(table((1, 3), *FILLED[1, 3])[:length])


@pytest.mark.parametrize("version", [(1, 9), (4, 0), (0, 0)])
def test_an_unknown_version_is_named(version: tuple[int, int]) -> None:
    """Rule: a layout that is not known is not guessed."""
    with pytest.raises(ReadingMissing, match=rf"of version {version[0]}\.{version[1]}"):
        gpu_metrics.readings(table(version, size=120))


@given(data=st.binary(max_size=400), version=st.sampled_from(sorted(TABLE_SIZES)))
def test_no_bytes_break_the_reader(data: bytes, version: tuple[int, int]) -> None:
    """Rule: whatever lies in the table, readings are valid or missing."""
    whole = struct.pack("<HBB", len(data) + 4, *version) + data
    try:
        values, missing = gpu_metrics.readings(whole)
    except ReadingMissing:
        return
    GPUMetrics("rocm:0", 0.0, **values, missing_reasons=missing)
