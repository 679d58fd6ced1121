"""The binary ``gpu_metrics`` attribute of amdgpu, decoded into readings in base units.

Layouts are those of the kernel's ``drivers/gpu/drm/amd/include/kgd_pp_interface.h``.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, NamedTuple

from exo.gpu.vocabulary.errors import ReadingMissing

# Fields in order, 16 bits each unless "/B", "/I" or "/Q" says 8, 32 or 64; "*8" is an array.
# The kernel packs nothing: each field is aligned to its own size.
_TEMPERATURES = (
    "temperature_edge temperature_hotspot temperature_mem temperature_vrgfx temperature_vrsoc "
    "temperature_vrmem average_gfx_activity average_umc_activity average_mm_activity "
    "average_socket_power"
)
_CLOCKS = (
    "average_gfxclk_frequency average_socclk_frequency average_uclk_frequency "
    "average_vclk0_frequency average_dclk0_frequency average_vclk1_frequency "
    "average_dclk1_frequency current_gfxclk current_socclk current_uclk current_vclk0 "
    "current_dclk0 current_vclk1 current_dclk1 throttle_status/I current_fan_speed"
)
_V1_0 = (
    f"system_clock_counter/Q {_TEMPERATURES} energy_accumulator/I {_CLOCKS} "
    "pcie_link_width/B pcie_link_speed/B"
)
_V1_1 = (
    f"{_TEMPERATURES} energy_accumulator/Q system_clock_counter/Q {_CLOCKS} pcie_link_width "
    "pcie_link_speed padding gfx_activity_acc/I mem_activity_acc/I temperature_hbm*4"
)
_V1_2 = f"{_V1_1} firmware_timestamp/Q"
_V1_3 = f"{_V1_2} voltage_soc voltage_gfx voltage_mem padding1 indep_throttle_status/Q"
_SOCKET = (
    "temperature_hotspot temperature_mem temperature_vrsoc curr_socket_power "
    "average_gfx_activity average_umc_activity"
)
_CLOCK = "energy_accumulator/Q system_clock_counter/Q"
_RESIDENCIES = (
    "accumulation_counter/I prochot_residency_acc/I ppt_residency_acc/I "
    "socket_thm_residency_acc/I vr_thm_residency_acc/I hbm_thm_residency_acc/I"
)
_COUNTERS = (
    "gfxclk_lock_status/I pcie_link_width pcie_link_speed xgmi_link_width xgmi_link_speed "
    "gfx_activity_acc/I mem_activity_acc/I pcie_bandwidth_acc/Q pcie_bandwidth_inst/Q "
    "pcie_l0_to_recov_count_acc/Q pcie_replay_count_acc/Q pcie_replay_rover_count_acc/Q"
)
_NAKS = "pcie_nak_sent_count_acc/I pcie_nak_rcvd_count_acc/I"
_XGMI = "xgmi_read_data_acc*8/Q xgmi_write_data_acc*8/Q"
_ENGINES = (
    "firmware_timestamp/Q current_gfxclk*8 current_socclk*4 current_vclk0*4 current_dclk0*4 "
    "current_uclk padding"
)
# From 1.6 on what each partition does follows, of which nothing is read here; its length differs.
_V1_7 = (
    f"{_SOCKET} mem_max_bandwidth/Q {_CLOCK} {_RESIDENCIES} {_COUNTERS} {_NAKS} {_XGMI} "
    f"xgmi_link_status*8 padding {_ENGINES}"
)
_APU_HEAD = (
    "temperature_gfx temperature_soc temperature_core*8 temperature_l3*2 "
    "average_gfx_activity average_mm_activity"
)
_APU_BODY = (
    "average_socket_power average_cpu_power average_soc_power average_gfx_power "
    "average_core_power*8 average_gfxclk_frequency average_socclk_frequency "
    "average_uclk_frequency average_fclk_frequency average_vclk_frequency "
    "average_dclk_frequency current_gfxclk current_socclk current_uclk current_fclk "
    "current_vclk current_dclk current_coreclk*8 current_l3clk*2 throttle_status/I fan_pwm"
)
_V2_1 = f"{_APU_HEAD} system_clock_counter/Q {_APU_BODY} padding*3"
_V2_2 = f"{_V2_1} indep_throttle_status/Q"
_V2_3 = (
    f"{_V2_2} average_temperature_gfx average_temperature_soc average_temperature_core*8 "
    "average_temperature_l3*2"
)

_LAYOUTS: dict[tuple[int, int], str] = {
    (1, 0): _V1_0,
    (1, 1): _V1_1,
    (1, 2): _V1_2,
    (1, 3): _V1_3,
    (1, 4): f"{_SOCKET} vcn_activity*4 {_CLOCK} throttle_status/I {_COUNTERS} {_XGMI} {_ENGINES}",
    (1, 5): (
        f"{_SOCKET} vcn_activity*4 jpeg_activity*32 {_CLOCK} throttle_status/I {_COUNTERS} "
        f"{_NAKS} {_XGMI} {_ENGINES}"
    ),
    (1, 6): f"{_SOCKET} {_CLOCK} {_RESIDENCIES} {_COUNTERS} {_NAKS} {_XGMI} {_ENGINES}",
    (1, 7): _V1_7,
    (1, 8): _V1_7,
    (2, 0): f"system_clock_counter/Q {_APU_HEAD} {_APU_BODY} padding",
    (2, 1): _V2_1,
    (2, 2): _V2_2,
    (2, 3): _V2_3,
    (2, 4): (
        f"{_V2_3} average_cpu_voltage average_soc_voltage average_gfx_voltage "
        "average_cpu_current average_soc_current average_gfx_current"
    ),
    (3, 0): (
        "temperature_gfx temperature_soc temperature_core*16 temperature_skin "
        "average_gfx_activity average_vcn_activity average_ipu_activity*8 "
        "average_core_c0_activity*16 average_dram_reads average_dram_writes average_ipu_reads "
        "average_ipu_writes system_clock_counter/Q average_socket_power/I average_ipu_power "
        "average_apu_power/I average_gfx_power/I average_dgpu_power/I average_all_core_power/I "
        "average_core_power*16 average_sys_power stapm_power_limit current_stapm_power_limit "
        "average_gfxclk_frequency average_socclk_frequency average_vpeclk_frequency "
        "average_ipuclk_frequency average_fclk_frequency average_vclk_frequency "
        "average_uclk_frequency average_mpipu_frequency current_coreclk*16 current_core_maxfreq "
        "current_gfx_maxfreq throttle_residency_prochot/I throttle_residency_spl/I "
        "throttle_residency_fppt/I throttle_residency_sppt/I throttle_residency_thm_core/I "
        "throttle_residency_thm_gfx/I throttle_residency_thm_soc/I time_filter_alphavalue/I"
    ),
}

# Reading -> fields that tell it, best first.
_CLOCK_FIELDS = {
    "clock_rate_mhz": ("current_gfxclk", "average_gfxclk_frequency"),
    "memory_clock_mhz": ("current_uclk", "average_uclk_frequency"),
}
_CARD_FIELDS = {
    "temperature_celsius": ("temperature_edge",),
    "hotspot_temperature_celsius": ("temperature_hotspot",),
    "memory_temperature_celsius": ("temperature_mem",),
    "compute_utilization_percent": ("average_gfx_activity",),
    "memory_utilization_percent": ("average_umc_activity",),
    "power_watts": ("average_socket_power", "curr_socket_power"),
    "pcie_width": ("pcie_link_width",),
    **_CLOCK_FIELDS,
}
_APU_FIELDS = {
    "temperature_celsius": ("temperature_gfx",),
    "compute_utilization_percent": ("average_gfx_activity",),
    "power_watts": ("average_socket_power",),
    **_CLOCK_FIELDS,
}

# What one of a field is in our unit. Tables of processors count hundredths of a degree; other
# units are written down for 2.4 and 3.0 only, and differed from chip to chip before.
_SCALES = {"temperature_celsius": 0.01, "power_watts": 0.001, "compute_utilization_percent": 0.01}
_UNIT_KNOWN = {
    "power_watts": {(2, 4), (3, 0)},
    "compute_utilization_percent": {(2, 4)},
}

# PCIe transfer rates in 0.1 GT/s -> generation (PCI Express base specification).
_GENERATIONS = {25: 1, 50: 2, 80: 3, 160: 4, 320: 5, 640: 6}

# One of the energy accumulator from 1.4 on, in joules (15.259 uJ); unknown before.
_ENERGY_JOULES = 2**-16
_ENERGY_KNOWN = {(1, 4), (1, 5), (1, 6), (1, 7), (1, 8)}

# Names of the bits of indep_throttle_status by the first bit of each group (kernel,
# amdgpu_smu.h, SMU_THROTTLER_*_BIT).
_THROTTLER_GROUPS = {
    0: "ppt0 ppt1 ppt2 ppt3 spl fppt sppt sppt_apu",
    16: "tdc_gfx tdc_soc tdc_mem tdc_vdd tdc_cvip edc_cpu edc_gfx apcc",
    32: "temp_gpu temp_core temp_mem temp_edge temp_hotspot temp_soc temp_vr_gfx temp_vr_soc",
    40: "temp_vr_mem0 temp_vr_mem1 temp_liquid0 temp_liquid1",
    44: "vrhot0 vrhot1 prochot_cpu prochot_gfx",
    56: "ppm fit",
}
THROTTLERS = {
    first + place: name
    for first, names in _THROTTLER_GROUPS.items()
    for place, name in enumerate(names.split())
}

_SIZES = {"B": 1, "H": 2, "I": 4, "Q": 8}
_HEADER_BYTES = 4

Version = tuple[int, int]


class _Field(NamedTuple):
    offset: int
    code: str
    length: int

    @property
    def end(self) -> int:
        return self.offset + _SIZES[self.code] * self.length


def readings(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Readings by field name of ``GPUMetrics``, and why the others are missing.

    A value of all ones is how the driver writes "not given".

    Raises:
        ReadingMissing: for a table that is cut short, or of a version that is not known.

    """
    version, raw = _decode(data)
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    fields = _CARD_FIELDS if version[0] == 1 else _APU_FIELDS
    for reading, names in fields.items():
        known = _UNIT_KNOWN.get(reading)
        found = [max(raw[name]) for name in names if raw.get(name)]
        if version[0] > 1 and known is not None and version not in known:
            missing[reading] = f"gpu_metrics {_text(version)} tells no unit for {names[0]}"
        elif not found:
            missing[reading] = f"gpu_metrics {_text(version)} gives no {names[0]}"
        else:
            scale = _SCALES.get(reading, 1) if version[0] > 1 else 1
            values[reading] = round(found[0] * scale, 3)
    for reading in ("compute_utilization_percent", "memory_utilization_percent"):
        if values.get(reading, 0) > 100:
            missing[reading] = f"gpu_metrics tells {values.pop(reading)}, which is no percentage"
    _add_link(raw, values, missing)
    _add_energy(version, raw, values, missing)
    _add_throttling(version, raw, values, missing)
    return values, missing


def _add_link(
    raw: dict[str, tuple[int, ...]], values: dict[str, Any], missing: dict[str, str]
) -> None:
    speed = max(raw.get("pcie_link_speed") or (0,))
    if speed in _GENERATIONS:
        values["pcie_generation"] = _GENERATIONS[speed]
    else:
        missing["pcie_generation"] = f"gpu_metrics gives no known link speed ({speed})"
    if values.get("pcie_width") == 0:
        missing["pcie_width"] = "gpu_metrics gives no link width"
        del values["pcie_width"]


def _add_energy(
    version: Version,
    raw: dict[str, tuple[int, ...]],
    values: dict[str, Any],
    missing: dict[str, str],
) -> None:
    counted = raw.get("energy_accumulator")
    if version not in _ENERGY_KNOWN or not counted:
        missing["energy_joules"] = f"gpu_metrics {_text(version)} gives no energy in a known unit"
    else:
        values["energy_joules"] = counted[0] * _ENERGY_JOULES


def _add_throttling(
    version: Version,
    raw: dict[str, tuple[int, ...]],
    values: dict[str, Any],
    missing: dict[str, str],
) -> None:
    """The same names for all chips where the driver translates; else bits of the chip's own."""
    named, own = raw.get("indep_throttle_status"), raw.get("throttle_status")
    if named:
        values["throttle_reasons"] = tuple(
            THROTTLERS.get(bit, f"bit_{bit}") for bit in range(64) if named[0] >> bit & 1
        )
    elif own:
        values["throttle_reasons"] = tuple(
            f"status_bit_{bit}" for bit in range(32) if own[0] >> bit & 1
        )
    else:
        missing["throttle_reasons"] = f"gpu_metrics {_text(version)} gives no throttle status"


def _decode(data: bytes) -> tuple[Version, dict[str, tuple[int, ...]]]:
    """The table's version, and the values of each field that are given."""
    if len(data) < _HEADER_BYTES:
        raise ReadingMissing(f"gpu_metrics is cut short: {len(data)} bytes")
    size, *version = struct.unpack_from("<HBB", data)
    found = (version[0], version[1])
    if found not in _LAYOUTS:
        raise ReadingMissing(f"gpu_metrics is of version {_text(found)}, which is not known")
    fields = _fields(found)
    needed = max(field.end for field in fields.values())
    if min(size, len(data)) < needed:
        raise ReadingMissing(
            f"gpu_metrics {_text(found)} is cut short: {min(size, len(data))} of {needed} bytes"
        )
    raw: dict[str, tuple[int, ...]] = {}
    for name, field in fields.items():
        absent = 2 ** (8 * _SIZES[field.code]) - 1
        all_values = struct.unpack_from(f"<{field.length}{field.code}", data, field.offset)
        raw[name] = tuple(value for value in all_values if value != absent)
    return found, raw


@cache
def _fields(version: Version) -> dict[str, _Field]:
    """Where each field of a version lies, each aligned to its own size."""
    fields: dict[str, _Field] = {}
    place = _HEADER_BYTES
    for entry in _LAYOUTS[version].split():
        name, _, code = entry.partition("/")
        name, _, count = name.partition("*")
        size = _SIZES[code or "H"]
        fields[name] = _Field(-(-place // size) * size, code or "H", int(count or 1))
        place = fields[name].end
    return fields


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
