"""Reading over and over: what is dear is carried and named, and energy stands in for power."""

from __future__ import annotations

import pytest

from exo.gpu.backend import QuickTelemetryAbility
from exo.gpu.backends.fake import FakeBackend
from exo.gpu.labelled import LabelledBackend
from exo.gpu.telemetry.sampling.readers import DeviceReader, PowerFromEnergy
from exo.gpu.vocabulary.metrics import GPUMetrics
from tests.backends.conftest import nvml, nvml_library
from tests.backends.nvml.fake_nvml import H100, FakeNvml
from tests.backends.nvml.opening import closed, opened

__all__ = ["closed", "nvml", "nvml_library"]

CARRIED = {
    "power_limit_watts",
    "fan_percent",
    "corrected_errors",
    "uncorrected_errors",
    "pcie_generation",
    "pcie_width",
}


def test_dear_readings_are_carried_and_named(nvml: FakeNvml) -> None:
    """Rule: between slow ticks the last dear readings stand and say so; all others are new."""
    nvml.write(H100)
    read = DeviceReader(opened(nvml), "cuda:0")
    first = read(dear=False)  # the first has everything, whatever is asked
    assert first.carried_readings == ()
    nvml.change("0.ecc.volatile.corrected", 9)
    nvml.change("0.temperature", 70)
    quick = read(dear=False)
    assert set(quick.carried_readings) == CARRIED
    assert (quick.corrected_errors, quick.temperature_celsius) == (2, 70)
    assert quick.missing_reasons == first.missing_reasons
    whole = read(dear=True)
    assert (whole.corrected_errors, whole.carried_readings) == (9, ())
    assert read(dear=False).corrected_errors == 9


def test_what_was_missing_is_missing_for_the_same_reason(nvml: FakeNvml) -> None:
    """Rule: nothing that was not read is carried, and its reason stands."""
    nvml.write(H100 | {"fan": "!3"})
    read = DeviceReader(opened(nvml), "cuda:0")
    first, quick = read(dear=True), read(dear=False)
    assert quick.fan_percent is None
    assert quick.missing_reasons["fan_percent"] == first.missing_reasons["fan_percent"]
    assert set(quick.carried_readings) == CARRIED - {"fan_percent"}


def test_nothing_is_carried_over_a_sleep(nvml: FakeNvml) -> None:
    """Rule: a device that wakes is read whole, since what was before it slept is old."""
    nvml.write(H100)
    power = nvml.description.parent / "sys/bus/pci/devices/0000:01:00.0/power"
    power.mkdir(parents=True)
    read = DeviceReader(opened(nvml), "cuda:0")
    read(dear=True)
    (power / "runtime_status").write_text("suspended\n")
    assert read(dear=False).carried_readings == ()
    assert read(dear=True).sleeping
    (power / "runtime_status").write_text("active\n")
    awake = read(dear=False)
    assert (awake.fan_percent, awake.carried_readings) == (30, ())


def test_labels_are_turned_on_the_way(nvml: FakeNvml) -> None:
    """Rule: a backend under labels reads quickly too, and its samples bear the labels."""
    nvml.write(H100)
    turned = LabelledBackend(opened(nvml))
    turned.rename({"cuda:0": "cuda:7"})
    assert isinstance(turned, QuickTelemetryAbility)
    read = DeviceReader(turned, "cuda:7")
    assert [read(dear=False).device_id for _ in range(2)] == ["cuda:7", "cuda:7"]


def test_a_backend_without_dear_readings_is_read_whole() -> None:
    """Rule: where nothing is dear, every sample has everything."""
    device = {
        "device_id": "fake:0",
        "name": "Fake",
        "vendor": "Fake",
        "backend": "fake",
        "hardware_id": "FAKE-0",
        "sample": {"fan_percent": 10},
    }
    backend = FakeBackend({"devices": [device]})
    backend.find()
    read = DeviceReader(backend, "fake:0")
    assert [(one.fan_percent, one.carried_readings) for one in (read(False), read(False))] == [
        (10, ()),
        (10, ()),
    ]


def counted(joules: float, **readings: float) -> GPUMetrics:
    return GPUMetrics("cuda:0", 1.0, energy_joules=joules, **readings)  # pyright: ignore[reportArgumentType] - watts only


def complete(power: PowerFromEnergy, sample: GPUMetrics, at: float) -> GPUMetrics:
    return power.complete(sample, "cuda:0", at=at, cadence_seconds=1)


def test_energy_becomes_power_with_its_window() -> None:
    """Rule: the mean over the time between two readings, which is told; the first has none."""
    power = PowerFromEnergy()
    first = complete(power, counted(1000), 10)
    assert first.power_watts is None
    assert "two readings" in first.missing_reasons["power_watts"]
    second = complete(power, counted(1400), 12)
    assert (second.power_watts, second.power_window_seconds) == (200, 2)
    assert "power_watts" not in second.missing_reasons
    assert second.energy_joules == 1400


def test_a_step_back_is_a_reset() -> None:
    """Rule: a counter that falls gives no power once, and counts from its new value."""
    power = PowerFromEnergy()
    complete(power, counted(1000), 10)
    reset = complete(power, counted(5), 11)
    assert reset.power_watts is None
    assert "stepped back" in reset.missing_reasons["power_watts"]
    assert complete(power, counted(55), 12).power_watts == 50


def test_a_gap_and_a_jump_are_no_power() -> None:
    """Rule: a mean over more than half a minute, or what no device can take, is not told."""
    power = PowerFromEnergy()
    complete(power, counted(0), 0)
    late = complete(power, counted(100), 31)
    assert "31 s ago: a gap" in late.missing_reasons["power_watts"]
    assert complete(power, counted(200), 32).power_watts == 100
    jump = complete(power, counted(1e300), 33)
    assert jump.power_watts is None
    assert "jumped" in jump.missing_reasons["power_watts"]
    slow = PowerFromEnergy()
    for at, watts in ((0, None), (60, 10)):
        sample = slow.complete(counted(10 * at), "cuda:0", at=at, cadence_seconds=60)
        assert sample.power_watts == watts


def test_what_the_driver_tells_is_not_replaced() -> None:
    """Rule: power that is there stays, and no old count is used where it is missing later."""
    power = PowerFromEnergy()
    complete(power, counted(0), 0)
    told = counted(500, power_watts=77)
    assert complete(power, told, 1) is told
    assert complete(power, counted(10), 2).power_watts is None
    bare = GPUMetrics("cuda:0", 1.0)
    assert complete(power, bare, 3) is bare
    power.forget("cuda:0")
    assert "two readings" in complete(power, counted(20), 4).missing_reasons["power_watts"]


@pytest.mark.parametrize("name", ["", " "])
def test_a_carried_reading_has_a_name(name: str) -> None:
    """Rule: what is carried is named."""
    with pytest.raises(ValueError, match="carried_readings"):
        GPUMetrics("cuda:0", 1.0, carried_readings=(name,))
