"""Every reading of an NVIDIA GPU through the real pynvml, and what stands where one is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psutil
import pytest

from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import BackendError, DeviceLost
from tests.backends.nvml.fake_nvml import GIB, H100, FakeNvml
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed"]

ALWAYS_MISSING = {"hotspot_temperature_celsius": "NVML does not tell it"}


@pytest.mark.shows("cuda", "telemetry", "fake")
def test_readings_are_in_base_units(nvml: FakeNvml, shown_on: Callable[[str, str], None]) -> None:
    """Rule: NVML's milliwatts become watts, its millijoules joules; reserved is neither used nor free."""
    nvml.write(H100)
    shown_on("scripted H100", "fake NVML 570.86.15")
    sample = opened(nvml).read("cuda:0")
    assert (sample.memory_total_bytes, sample.memory_used_bytes) == (80 * GIB, 10 * GIB)
    assert sample.memory_reserved_bytes == GIB // 2
    assert sample.memory_free_bytes == 80 * GIB - 10 * GIB - GIB // 2
    assert (sample.compute_utilization_percent, sample.memory_utilization_percent) == (37, 21)
    assert (sample.power_watts, sample.power_limit_watts) == (120, 350)
    assert sample.energy_joules == pytest.approx(987_654.321)
    assert (sample.temperature_celsius, sample.memory_temperature_celsius) == (55, 61)
    assert (sample.clock_rate_mhz, sample.memory_clock_mhz, sample.fan_percent) == (1410, 1593, 30)
    assert (sample.pcie_generation, sample.pcie_width) == (5, 16)
    assert (sample.corrected_errors, sample.uncorrected_errors) == (2, 0)
    assert (sample.encoder_percent, sample.decoder_percent) == (3, 4)
    assert sample.performance_state == 0
    assert sample.throttle_reasons == ()
    assert sample.missing_reasons == ALWAYS_MISSING


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
    ("fields", "readings"),
    [
        (["power", "power.average", "power.instant"], ["power_watts", "power_window_seconds"]),
        (["power.limit"], ["power_limit_watts"]),
        (["energy"], ["energy_joules"]),
        (["temperature", "temperature_v"], ["temperature_celsius"]),
        (["temperature.memory"], ["memory_temperature_celsius"]),
        (["utilization"], ["compute_utilization_percent", "memory_utilization_percent"]),
        (["clock"], ["clock_rate_mhz"]),
        (["clock.memory"], ["memory_clock_mhz"]),
        (["fan"], ["fan_percent"]),
        (["throttle", "throttle_old"], ["throttle_reasons"]),
        (["ecc.volatile.corrected", "ecc.aggregate.corrected"], ["corrected_errors"]),
        (["pcie.generation"], ["pcie_generation"]),
        (["pcie.width"], ["pcie_width"]),
        (["encoder"], ["encoder_percent"]),
        (["decoder"], ["decoder_percent"]),
        (["state"], ["performance_state"]),
        (
            ["memory.total"],
            ["memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"],
        ),
    ],
)
def test_an_error_costs_its_own_readings_only(
    nvml: FakeNvml, code: int, reason: str, fields: list[str], readings: list[str]
) -> None:
    """Rule: what the driver does not give is None with its reason; everything else is read."""
    nvml.write(H100 | dict.fromkeys(fields, f"!{code}"))
    sample = opened(nvml).read("cuda:0")
    assert sample.missing_reasons == dict.fromkeys(readings, reason) | ALWAYS_MISSING
    for name in readings:
        assert getattr(sample, name) is None
    assert sample.memory_total_bytes is not None or "memory.total" in fields


def test_what_is_not_supported_is_not_asked_again(nvml: FakeNvml) -> None:
    """Rule: NOT_SUPPORTED is remembered for device and field; a passing error is not."""
    nvml.write(H100 | {"fan": "!3", "clock": "!10"}, H100)
    backend = opened(nvml)
    assert backend.read("cuda:0").fan_percent is None
    nvml.change("0.fan", 50)
    nvml.change("0.clock", 900)
    sample = backend.read("cuda:0")
    assert (sample.fan_percent, sample.clock_rate_mhz) == (None, 900)
    assert backend.read("cuda:1").fan_percent == 30
    backend.find()
    assert backend.read("cuda:0").fan_percent == 50


def test_what_is_denied_is_said_once(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    """Rule: NO_PERMISSION is remembered like NOT_SUPPORTED, and one line of log says so."""
    nvml.write(H100 | {"energy": "!4"})
    backend = opened(nvml)
    with caplog.at_level(logging.WARNING, "exo.gpu"):
        for _ in range(3):
            assert backend.read("cuda:0").energy_joules is None
    assert [record.getMessage() for record in caplog.records] == [
        "energy_joules of cuda:0: the driver denies it to this user"
    ]


@pytest.mark.parametrize(
    ("changes", "watts", "seconds"),
    [
        ({}, 120, 1),
        ({"power.average": "!3"}, 131.072, 0),
        ({"power.average": "!3", "power.instant": "!13"}, 123.456, 1),
        ({"power.average": "!3", "power.instant": "!3", "capability": "8.0"}, 123.456, None),
        ({"power.average": "!3", "power.instant": "!3", "capability": "7.5"}, 123.456, None),
        ({"power.average": "!3", "power.instant": "!3", "capability": "!3"}, 123.456, None),
        ({"power.average": 0xFFFFFFFF}, 131.072, 0),
    ],
)
def test_power_is_given_with_its_window(
    nvml: FakeNvml, changes: dict[str, object], watts: float, seconds: float | None
) -> None:
    """Rule: an average over 1 s, else the instant's, else what the architecture is known to give."""
    nvml.write(H100 | changes)
    sample = opened(nvml).read("cuda:0")
    assert sample.power_watts == pytest.approx(watts)
    assert sample.power_window_seconds == seconds
    assert ("power_window_seconds" in sample.missing_reasons) == (seconds is None)


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        ("0x0", ()),
        ("0x1", ("idle",)),
        ("0x2", ("application clocks",)),
        ("0x48", ("hardware slowdown", "hardware thermal slowdown")),
        ("0x4004", ("software power cap", "reason 0x4000")),
    ],
)
def test_throttle_reasons_are_named(nvml: FakeNvml, mask: str, reasons: tuple[str, ...]) -> None:
    """Rule: every bit has its name; idle and application clocks are told but are no faults."""
    nvml.write(H100 | {"throttle": mask})
    assert opened(nvml).read("cuda:0").throttle_reasons == reasons


def test_throttle_reasons_of_an_old_driver(nvml: FakeNvml) -> None:
    """Rule: where the newer call is not there, the older one is asked."""
    nvml.write(H100 | {"throttle": "!13", "throttle_old": "0x20"})
    assert opened(nvml).read("cuda:0").throttle_reasons == ("software thermal slowdown",)


def test_errors_since_the_gpu_was_made_stand_in(nvml: FakeNvml) -> None:
    """Rule: without a counter since the driver came, the one since the GPU was made is given."""
    nvml.write(H100 | {"ecc.volatile.corrected": "!3", "ecc.volatile.uncorrected": "!3"})
    sample = opened(nvml).read("cuda:0")
    assert (sample.corrected_errors, sample.uncorrected_errors) == (7, 1)


def test_a_fan_beyond_its_nominal_speed_runs_at_full_speed(nvml: FakeNvml) -> None:
    """Rule: NVML may give more than 100 %, which is full speed and not a reason to drop a sample."""
    nvml.write(H100 | {"fan": 103})
    assert opened(nvml).read("cuda:0").fan_percent == 100


@pytest.mark.parametrize("sentinel", [0xFFFFFFFF, 0xFFFF])
def test_leaked_sentinels_are_no_readings(nvml: FakeNvml, sentinel: int) -> None:
    """Rule: a value that means "unknown" inside the driver never becomes a number."""
    narrow = ("utilization", "temperature", "clock", "pcie.width", "fan", "temperature.memory")
    narrow += ("encoder", "state")
    nvml.write(H100 | dict.fromkeys(narrow, sentinel) | {"clock.max": 0xFFFFFFFF})
    backend = opened(nvml)
    assert backend.require("cuda:0").clock_rate_mhz is None
    sample = backend.read("cuda:0")
    for name in (
        "compute_utilization_percent",
        "temperature_celsius",
        "memory_temperature_celsius",
        "clock_rate_mhz",
        "pcie_width",
        "fan_percent",
        "encoder_percent",
        "performance_state",
    ):
        assert getattr(sample, name) is None
        assert sample.missing_reasons[name]
    assert f"{sentinel:#x}" in sample.missing_reasons["pcie_width"]
    assert sample.memory_clock_mhz == 1593


def test_more_memory_used_than_there_is_is_no_reading(nvml: FakeNvml) -> None:
    """Rule: an impossible pair of memory figures is absent with a reason, and raises nothing."""
    nvml.write(H100 | {"memory.used": 81 * GIB})
    backend = opened(nvml)
    assert backend.require("cuda:0").memory_bytes is None
    sample = backend.read("cuda:0")
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, None)
    assert sample.temperature_celsius == 55


def test_memory_falls_back_to_version_one(nvml: FakeNvml) -> None:
    """Rule: without the second version, used includes what is reserved, and nothing is hidden."""
    nvml.write(H100 | {"memory_v2": "!13"})
    sample = opened(nvml).read("cuda:0")
    assert sample.memory_used_bytes == 10 * GIB + GIB // 2
    assert sample.memory_reserved_bytes is None
    assert "not told apart" in sample.missing_reasons["memory_reserved_bytes"]
    assert sample.memory_free_bytes == 80 * GIB - 10 * GIB - GIB // 2


def test_temperature_falls_back_to_the_newer_call(nvml: FakeNvml) -> None:
    """Rule: a driver that has only the newer temperature call is still read."""
    nvml.write(H100 | {"temperature": "!3", "temperature_v": 61})
    assert opened(nvml).read("cuda:0").temperature_celsius == 61


UNIFIED = {name: value for name, value in H100.items() if not name.startswith("memory")}


@pytest.mark.parametrize("name", ["NVIDIA GB10", "Orin (nvgpu)", "NVIDIA Thor", "Jetson Xavier"])
def test_an_integrated_gpu_has_the_machines_memory(nvml: FakeNvml, name: str) -> None:
    """Rule: a recognised integrated GPU without memory of its own shows the machine's, as its pool."""
    nvml.write(UNIFIED | {"name": name})
    backend = opened(nvml)
    device = backend.require("cuda:0")
    assert device.memory_pool == HOST_POOL
    assert device.memory_bytes is not None
    assert device.memory_bytes <= psutil.virtual_memory().total
    sample = backend.read("cuda:0")
    assert sample.memory_total_bytes == device.memory_bytes
    assert sample.memory_used_bytes is not None
    assert "memory_reserved_bytes" in sample.missing_reasons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "NVIDIA GB100"}, "not supported by this GPU"),
        ({"name": "NVIDIA GB10", "memory.total": "!999"}, "Unknown Error"),
        ({"name": "NVIDIA GB10", "memory.total": 0xFFFFFFFF, "memory.used": 0}, "no reading"),
    ],
)
def test_no_other_gpu_is_given_the_machines_memory(
    nvml: FakeNvml, changes: dict[str, object], reason: str
) -> None:
    """Rule: an unknown GPU, or one that fails otherwise, has no figure, and none is made up."""
    nvml.write(UNIFIED | changes)
    backend = opened(nvml)
    device = backend.require("cuda:0")
    assert (device.memory_bytes, device.memory_available) == (None, None)
    sample = backend.read("cuda:0")
    assert sample.memory_total_bytes is None
    assert reason in sample.missing_reasons["memory_total_bytes"]


def test_a_lost_integrated_gpu_is_lost(nvml: FakeNvml) -> None:
    """Rule: GPU_IS_LOST is health, also where the machine's memory could stand in."""
    nvml.write(UNIFIED | {"name": "NVIDIA GB10"})
    backend = opened(nvml)
    nvml.change("0.memory.total", "!15")
    with pytest.raises(DeviceLost):
        backend.read("cuda:0")
    backend.find()
    assert backend.remark == "GPU 0: GPU is lost"


def test_a_driver_replaced_underneath_is_opened_anew(nvml: FakeNvml) -> None:
    """Rule: LIB_RM_VERSION_MISMATCH costs one re-opening; where it stays, the reason says so."""
    nvml.write(H100)
    backend = opened(nvml)
    nvml.change("0.power.average", "!18")
    with pytest.raises(BackendError, match="RM has detected"):
        backend.read("cuda:0")
    nvml.change("0.power.average", 5000)
    assert backend.read("cuda:0").power_watts == 5


@pytest.mark.parametrize(("status", "sleeping"), [("suspended", True), ("active", False)])
def test_a_sleeping_gpu_is_not_woken(nvml: FakeNvml, status: str, sleeping: bool) -> None:
    """Rule: what the kernel powered down is reported as sleeping, and NVML is not asked."""
    nvml.write(H100 | {"lost_after": 1000}, H100)
    power = nvml.description.parent / "sys/bus/pci/devices/0000:01:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_text(f"{status}\n")
    backend = opened(nvml)
    nvml.change("0.lost_after", 0 if sleeping else None)  # any question would end in DeviceLost
    sample = backend.read("cuda:0")
    assert sample.sleeping is sleeping
    assert (sample.memory_total_bytes is None) is sleeping
    assert ("not woken" in sample.missing_reasons.get("power_watts", "")) is sleeping
    assert backend.read("cuda:1").sleeping is False
