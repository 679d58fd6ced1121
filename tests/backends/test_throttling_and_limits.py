"""What all vendors' throttling means, and the temperatures that devices state as their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.gpu.backends import level_zero_readings, nvml_throttling, rocm_readings
from exo.gpu.backends.throttling import throttle_kinds
from exo.gpu.vocabulary.health import ThrottleKind
from tests.backends.nvml.fake_nvml import GIB, H100, FakeNvml, cut
from tests.backends.nvml.opening import closed, opened
from tests.backends.sysfs import captured

__all__ = ["closed"]  # a fixture

THERMAL, BRAKE = ThrottleKind.THERMAL, ThrottleKind.POWER_BRAKE
HARDWARE, LIMIT = ThrottleKind.HARDWARE, ThrottleKind.POWER_LIMIT


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        ("0x0", ()),
        ("0x1", ()),  # idle
        ("0x112", ()),  # clocks of applications, of a display, of a group
        ("0x4", (LIMIT,)),
        ("0x48", (HARDWARE, THERMAL)),
        ("0x88", (HARDWARE, BRAKE)),
        ("0x60", (THERMAL,)),
        ("0x40000000", None),  # nobody knows what it is
        ("0x40000020", (THERMAL,)),
        (None, None),
    ],
)
def test_nvidias_throttle_reasons_have_their_kinds(nvml: FakeNvml, mask, kinds) -> None:
    """Rule: idle and chosen clocks are none; what nobody knows is unknown, not well."""
    nvml.write(H100 | {"throttle": mask or "!3"})
    assert opened(nvml).read("cuda:0").throttle_kinds == kinds


@pytest.mark.parametrize(
    ("meanings", "words", "kinds"),
    [
        (rocm_readings.THROTTLE_MEANINGS, ("ppt0", "temp_hotspot", "vrhot1"), (LIMIT, THERMAL)),
        (rocm_readings.THROTTLE_MEANINGS, ("prochot_gfx", "fit"), (HARDWARE,)),
        (rocm_readings.THROTTLE_MEANINGS, ("status_bit_5",), None),
        (level_zero_readings.THROTTLE_MEANINGS, ("pl1", "vr_thermalert"), (LIMIT, THERMAL)),
        (level_zero_readings.THROTTLE_MEANINGS, ("pwrbrk", "prochot"), (BRAKE, HARDWARE)),
        (level_zero_readings.THROTTLE_MEANINGS, ("p0_freq",), ()),
        (level_zero_readings.THROTTLE_MEANINGS, ("unknown",), None),
        (nvml_throttling.MEANINGS, None, None),
    ],
)
def test_other_vendors_words_have_their_kinds(meanings, words, kinds) -> None:
    """Rule: one vocabulary for heat, power brake, outside signals and limits of power."""
    assert throttle_kinds(words, meanings) == kinds


@pytest.mark.parametrize(
    ("thresholds", "limits"),
    [
        ({0: 92, 1: 89, 3: 85}, (85.0, 89.0)),
        ({0: 98, 1: 95}, (95.0, 95.0)),
        ({0: 98}, (None, 98.0)),
        ({0: 0, 1: 0xFFFFFFFF, 3: "!3"}, (None, None)),
    ],
)
def test_an_nvidia_gpu_states_where_it_slows_down(nvml: FakeNvml, thresholds, limits) -> None:
    """Rule: it warns where the driver slows it, and is critical where its hardware does."""
    stated = {f"threshold.{number}": celsius for number, celsius in thresholds.items()}
    nvml.write(H100 | stated, cut(H100, 1, {0: GIB}) | stated)
    for device in opened(nvml).list_devices():
        assert (device.warn_celsius, device.critical_celsius) == limits


@pytest.mark.parametrize(
    ("model", "limits"),
    [("rx580", (94, None)), ("vega56", (85, 90)), ("rx7900xtx", (100, 105)), ("phoenix", None)],
)
def test_captured_amd_cards_state_their_limits(model: str, limits) -> None:
    """Rule: hwmon's critical temperature of the edge, and its emergency."""
    from tests.backends.test_captured import amd

    (device,) = amd(model).find()
    assert (device.warn_celsius, device.critical_celsius) == (limits or (None, None))


def test_a_captured_intel_card_states_its_limits() -> None:
    """Rule: of the package, whose temperature is the one that is read."""
    from tests.backends.test_captured import intel

    (device,) = intel("b580", iter(range(9))).find()
    folder = next(captured("intel", "b580").glob("card*/device/hwmon/hwmon*"))
    stated = [
        int(Path(folder / f"temp2{name}").read_text()) / 1000 for name in ("_crit", "_emergency")
    ]
    assert [device.warn_celsius, device.critical_celsius] == stated
