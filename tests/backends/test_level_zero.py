"""Intel cards from sysfs trees that the tests make."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics
from tests.backends.sysfs import ARC, IRIS, RX, at, broken_file, card, client


def opened(root: Path, **environ: str) -> LevelZeroBackend:
    backend = LevelZeroBackend(environ=environ, root=root)
    backend.find()
    return backend


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A machine with Intel graphics in its processor, an Arc card and an AMD card."""
    card(tmp_path, 0, ARC)
    card(tmp_path, 1, IRIS)
    card(tmp_path, 2, RX)
    return tmp_path


def test_cards_of_both_drivers_are_found_in_pci_order(both: Path) -> None:
    """Rule: i915 and xe cards, by place on the bus; processor graphics share the host's memory."""
    iris, arc = opened(both).list_devices()
    assert (iris.device_id, iris.hardware_id) == ("level_zero:0", "0000:00:02.0")
    assert (iris.driver_version, iris.memory_pool, iris.clock_rate_mhz) == ("i915", HOST_POOL, 1300)
    assert (arc.device_id, arc.name) == ("level_zero:1", "Intel GPU [8086:e20b]")
    assert (arc.memory_pool, arc.clock_rate_mhz, arc.runtime) == ("0000:09:00.0", 2850, "xpu")


def test_readings_of_i915_and_xe(both: Path) -> None:
    """Rule: what hwmon and the frequency files give is read; memory is None with its reason."""
    backend = opened(both)
    iris, arc = backend.read("level_zero:0"), backend.read("level_zero:1")
    assert (iris.power_watts, iris.temperature_celsius, iris.clock_rate_mhz) == (9.5, 47, 350)
    assert (arc.power_watts, arc.temperature_celsius, arc.clock_rate_mhz) == (None, 54, 1850)
    assert "power1_input" in arc.missing_reasons["power_watts"]
    for sample in (iris, arc):
        assert (sample.memory_used_bytes, sample.memory_total_bytes) == (None, None)
        assert "privileged" in sample.missing_reasons["memory_used_bytes"]
        assert sample.compute_utilization_percent is None


class Clock:
    """Seconds that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


XE = {
    "device/hwmon/hwmon1/energy1_label": "card",
    "device/hwmon/hwmon1/energy1_input": "5000000",
    "device/hwmon/hwmon1/temp3_label": "vram",
    "device/hwmon/hwmon1/temp3_input": "62000",
    "device/hwmon/hwmon1/power1_cap": "190000000",
    "device/hwmon/hwmon1/fan1_input": "1100",
    "device/hwmon/hwmon1/fan1_max": "2200",
    "device/tile0/gt0/gtidle/idle_residency_ms": "1000",
    "device/tile0/gt0/freq0/throttle/status": "1",
    "device/tile0/gt0/freq0/throttle/reasons": "pl1",
    "device/tile0/gt0/freq0/throttle/reason_pl1": "1",
    "device/tile0/gt0/freq0/throttle/reason_thermal": "0",
}


def test_power_and_work_come_from_two_readings(tmp_path: Path) -> None:
    """Rule: energy per second is power, time not idle is work; a step back is a reset."""
    folder = card(tmp_path, 0, ARC, XE)
    clock = Clock()
    backend = LevelZeroBackend(environ={}, root=tmp_path, clock=clock)
    backend.find()

    def read(energy: int, idle: int) -> GPUMetrics:
        (folder / "device/hwmon/hwmon1/energy1_input").write_text(str(energy))
        (folder / "device/tile0/gt0/gtidle/idle_residency_ms").write_text(str(idle))
        return backend.read("level_zero:0")

    first = read(5_000_000, 1000)
    assert (first.power_watts, first.compute_utilization_percent) == (None, None)
    assert "two readings" in first.missing_reasons["power_watts"]
    assert "two readings" in first.missing_reasons["compute_utilization_percent"]
    clock.now += 2
    second = read(5_000_000 + 2 * 75_000_000, 1500)
    assert (second.power_watts, second.power_window_seconds) == (75, 2)
    assert second.compute_utilization_percent == 75
    assert second.energy_joules == 155
    assert not {"power_watts", "compute_utilization_percent"} & set(second.missing_reasons)
    clock.now += 1
    third = read(40, 2600)  # the driver was loaded again; idle for longer than time passed
    assert third.power_watts is None
    assert "stepped back" in third.missing_reasons["power_watts"]
    assert third.compute_utilization_percent == 0
    clock.now += 1
    assert read(1_000_040, 10).missing_reasons["compute_utilization_percent"] == (
        "the counter stepped back: the driver has reset it"
    )


def test_all_that_xe_tells_is_read(tmp_path: Path) -> None:
    """Rule: limit, memory's temperature, fan and reasons of a held clock, in base units."""
    card(tmp_path, 0, ARC, XE)
    sample = opened(tmp_path).read("level_zero:0")
    assert (sample.power_limit_watts, sample.memory_temperature_celsius) == (190, 62)
    assert (sample.fan_percent, sample.throttle_reasons) == (50, ("pl1",))


@pytest.mark.parametrize(
    ("status", "expected"), [("0", ()), ("1", ("pl1", "prochot")), ("2", None)]
)
def test_all_that_i915_tells_is_read(
    tmp_path: Path, status: str, expected: tuple[str, ...] | None
) -> None:
    """Rule: the older driver's files mean the same; energy without a label is the card's."""
    older = {
        "device/hwmon/hwmon2/power1_input": None,
        "device/hwmon/hwmon2/energy1_input": "7000000",
        "device/hwmon/hwmon2/power1_max": "35000000",
        "gt/gt0/rc6_residency_ms": "10",
        "gt/gt0/throttle_reason_status": status,
        "gt/gt0/throttle_reason_pl1": status,
        "gt/gt0/throttle_reason_pl2": "0",
        "gt/gt0/throttle_reason_prochot": status,
    }
    card(tmp_path, 0, IRIS, older)
    sample = opened(tmp_path).read("level_zero:0")
    assert (sample.energy_joules, sample.power_limit_watts) == (7, 35)
    assert sample.throttle_reasons == expected
    assert "two readings" in sample.missing_reasons["compute_utilization_percent"]


def test_a_clock_held_for_no_named_reason_is_unknown(tmp_path: Path) -> None:
    """Rule: held back without a reason is not the same as not held back."""
    card(tmp_path, 0, ARC, XE, {"device/tile0/gt0/freq0/throttle/reason_pl1": "0"})
    assert opened(tmp_path).read("level_zero:0").throttle_reasons == ("unknown",)


def test_the_link_within_a_card_is_not_its_link(tmp_path: Path) -> None:
    """Rule: 2.5 GT/s and one lane at most are of the card's own switch, and are not reported."""
    link = {
        "device/max_link_speed": "2.5 GT/s PCIe",
        "device/max_link_width": "1",
        "device/current_link_speed": "2.5 GT/s PCIe",
        "device/current_link_width": "1",
    }
    card(tmp_path / "inner", 0, ARC, link)
    inner = opened(tmp_path / "inner").read("level_zero:0")
    assert (inner.pcie_generation, inner.pcie_width) == (None, None)
    assert "within itself" in inner.missing_reasons["pcie_width"]
    outer = {"device/max_link_speed": "16.0 GT/s PCIe", "device/max_link_width": "8"}
    card(tmp_path / "outer", 0, ARC, link, outer, {"device/current_link_width": "8"})
    sample = opened(tmp_path / "outer").read("level_zero:0")
    assert (sample.pcie_generation, sample.pcie_width) == (1, 8)


def test_dear_readings_are_carried_by_a_quick_reading(tmp_path: Path) -> None:
    """Rule: fan, power limit and link stay as they were and are named; the rest is new."""
    more = {
        "device/hwmon/hwmon1/power1_max": "190000000",
        "device/max_link_speed": "16.0 GT/s PCIe",
        "device/max_link_width": "8",
        "device/current_link_speed": "16.0 GT/s PCIe",
        "device/current_link_width": "8",
    }
    folder = card(tmp_path, 0, ARC, more)
    backend = opened(tmp_path)
    before = backend.read("level_zero:0")
    (folder / "device/current_link_width").write_text("4\n")
    (folder / "device/tile0/gt0/freq0/act_freq").write_text("700\n")
    quick = backend.read_quickly("level_zero:0", before)
    assert quick.carried_readings == ("power_limit_watts", "pcie_generation", "pcie_width")
    assert (quick.power_limit_watts, quick.pcie_width, quick.clock_rate_mhz) == (190, 8, 700)
    assert quick.missing_reasons["fan_percent"] == before.missing_reasons["fan_percent"]
    assert backend.read("level_zero:0").pcie_width == 4


@pytest.mark.parametrize("maker", ["0x8086", "0x1022"])
def test_the_link_above_a_cards_own_switch_is_its_link(tmp_path: Path, maker: str) -> None:
    """Rule: the upper port of Intel's switch tells it; above another's bridge nothing is guessed."""
    folder = card(tmp_path / "drm", 0, ARC)
    upper = tmp_path / "0000:06:00.0"
    device = upper / "0000:07:01.0/0000:09:00.0"
    device.parent.mkdir(parents=True)
    (folder / "device").rename(device)
    (folder / "device").symlink_to(device)
    for port in (upper, device.parent):
        (port / "class").write_text("0x060400\n")
        (port / "vendor").write_text(f"{maker}\n")
    for path, speed, width in ((device, "2.5", 1), (upper, "16.0", 8)):
        (path / "max_link_speed").write_text(f"{speed} GT/s PCIe\n")
        (path / "max_link_width").write_text(f"{width}\n")
        (path / "current_link_speed").write_text(f"{speed} GT/s PCIe\n")
        (path / "current_link_width").write_text(f"{width}\n")
    sample = opened(tmp_path / "drm").read("level_zero:0")
    expected = (4, 8) if maker == "0x8086" else (None, None)
    assert (sample.pcie_generation, sample.pcie_width) == expected


def test_work_of_visible_programs_is_a_lower_bound(tmp_path: Path) -> None:
    """Rule: without idle times the programs that we may see are counted, labelled as such."""
    root, proc = tmp_path / "drm", tmp_path / "proc"
    card(root, 0, IRIS)
    clock = Clock()
    backend = LevelZeroBackend(environ={}, root=root, proc=proc, clock=clock)
    backend.find()
    reasons = backend.read("level_zero:0").missing_reasons
    assert "cannot be listed" in reasons["compute_utilization_percent"]
    text = "drm-client-id: 9\ndrm-pdev: 0000:00:02.0\ndrm-engine-render: {} ns\n"
    client(proc, 70, 5, text.format(0))
    assert backend.read("level_zero:0").compute_utilization_percent is None
    clock.now += 2
    client(proc, 70, 5, text.format(5 * 10**8))
    sample = backend.read("level_zero:0")
    assert sample.compute_utilization_percent == 25
    assert sample.utilization_is_lower_bound
    assert "compute_utilization_percent" not in sample.missing_reasons


@pytest.mark.parametrize("code", [errno.EIO, errno.EBUSY, errno.EPERM])
@pytest.mark.parametrize(
    ("file", "reading"),
    [
        ("energy1_input", "energy_joules"),
        ("idle_residency_ms", "compute_utilization_percent"),
        ("temp2_input", "temperature_celsius"),
        ("power1_cap", "power_limit_watts"),
    ],
)
def test_errors_of_the_system_end_in_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, file: str, reading: str
) -> None:
    """Rule: a file that cannot be read takes away its reading only, with the reason."""
    card(tmp_path, 0, ARC, XE)
    backend = LevelZeroBackend(environ={}, root=tmp_path, proc=tmp_path / "absent")
    backend.find()
    broken_file(monkeypatch, file, code)
    sample = backend.read("level_zero:0")
    assert getattr(sample, reading) is None
    assert sample.missing_reasons[reading]
    assert sample.clock_rate_mhz == 1850


def test_a_card_that_goes_while_cards_are_found_is_passed_over(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: "no such device" on one card leaves the others, and is told in the remark."""
    broken_file(monkeypatch, "max_freq", errno.ENODEV)
    backend = opened(both)
    assert [device.pci_address for device in backend.list_devices()] == ["0000:00:02.0"]
    assert "card0" in backend.remark


@pytest.mark.parametrize("alone", [True, False])
def test_a_card_that_does_not_say_what_it_is_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Rule: a card whose identity cannot be read is missing with the reason, as one or the only."""
    open_file = os.open

    def refuse(path: str, *flags: int, **options: int) -> int:
        if path == str(tmp_path / "card7/device/uevent"):
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, *flags, **options)

    card(tmp_path, 7, ARC)
    monkeypatch.setattr(os, "open", refuse)
    if alone:
        with pytest.raises(BackendUnavailable, match="card7 is not known: Input/output error"):
            opened(tmp_path)
    else:
        card(tmp_path, 1, ARC)
        backend = opened(tmp_path)
        assert len(backend.list_devices()) == 1
        assert "card7 is not known: Input/output error" in backend.remark


def test_a_sleeping_card_is_not_woken(tmp_path: Path) -> None:
    """Rule: a suspended card is listed without its sensors, and reported as sleeping."""
    card(tmp_path, 0, ARC, {"device/power/runtime_status": "suspended"})
    backend = opened(tmp_path)
    assert backend.require("level_zero:0").clock_rate_mhz is None
    sample = backend.read("level_zero:0")
    assert sample.sleeping
    assert set(sample.missing_reasons) == set(READINGS)


def test_a_card_that_gives_nothing_is_an_error(tmp_path: Path) -> None:
    """Rule: a sample without a single reading is no sample."""
    card(tmp_path, 0, at("0000:03:00.0", "8086:56A5", "xe"))
    with pytest.raises(BackendError, match="gave no reading"):
        opened(tmp_path).read("level_zero:0")


def test_without_a_driver_the_reason_names_it(tmp_path: Path) -> None:
    """Rule: no i915 or xe card means an absent backend, with the driver to load."""
    card(tmp_path, 0, RX)
    with pytest.raises(BackendUnavailable, match="i915 or xe"):
        opened(tmp_path)


# Visibility and pinning


def test_a_process_is_pinned_by_index_in_pci_order(both: Path) -> None:
    """Rule: the mask names the index, and the order is fixed beside it."""
    backend = opened(both)
    assert backend.pinning([backend.require("level_zero:1")], {}) == {
        "ZE_AFFINITY_MASK": "1",
        "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1",
        "ONEAPI_DEVICE_SELECTOR": None,
    }
    (index,) = backend.hiding().values()
    assert int(str(index)) > 100


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {0: "0", 1: "1"}),
        ({"ZE_AFFINITY_MASK": ""}, {0: "0", 1: "1"}),
        ({"ZE_AFFINITY_MASK": "1", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, {1: "1"}),
        ({"ZE_AFFINITY_MASK": "1.0,1.1", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, {1: "1.0,1.1"}),
        ({"ZE_AFFINITY_MASK": "1"}, {}),
        ({"ZE_AFFINITY_MASK": "999", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}, {}),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}, {}),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}, {0: "0", 1: "1"}),
    ],
)
def test_an_inherited_mask_is_the_universe(
    both: Path, environ: dict[str, str], expected: dict[int, str]
) -> None:
    """Rule: a mask is kept, tiles included; one in unknown order leaves nothing."""
    backend = opened(both, **environ)
    assert [device.device_id for device in backend.list_devices()] == [
        f"level_zero:{place}" for place in expected
    ]
    assert bool(backend.remark) == (len(expected) < 2)
    everything = opened(both)
    for place, device in enumerate(everything.list_devices()):
        if place in expected:
            pinned = everything.pinning([device], environ)
            assert pinned["ZE_AFFINITY_MASK"] == expected[place]
        else:
            with pytest.raises(BackendError, match="hidden"):
                everything.pinning([device], environ)


def test_a_card_that_was_not_found_is_not_pinned(both: Path) -> None:
    """Rule: an index is given only to a card whose place among the others is known."""
    stranger = GPUDevice("level_zero:0", "card", "Intel", "level_zero", hardware_id="0000:77:00.0")
    with pytest.raises(BackendError, match="not among"):
        opened(both).pinning([stranger], {})
