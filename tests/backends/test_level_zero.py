"""Intel cards from sysfs trees that the tests make, and from captured ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exo.gpu.backends.level_zero import LevelZeroBackend
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS
from tests.backends.sysfs import ARC, IRIS, RX, at, captured, card


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


# Captured trees of real machines: expected values written by hand from the raw files


@pytest.mark.shows("level_zero", "telemetry", "captured")
@pytest.mark.shows("level_zero", "finding", "captured")
@pytest.mark.parametrize(
    ("model", "address", "celsius", "mhz", "largest"),
    [("a380-xe", "0000:08:00.0", 56, 0, 2450), ("b580", "0000:09:00.0", 54, 0, 2850)],
)
def test_captured_cards_are_read_with_the_right_units(
    shown_on: Callable[[str, str], None],
    model: str,
    address: str,
    celsius: float,
    mhz: float,
    largest: float,
) -> None:
    """Rule: every documented reading of a real card's tree comes out in base units."""
    backend = opened(captured("intel", model))
    shown_on(model, "xe")
    (device,) = backend.list_devices()
    assert (device.pci_address, device.clock_rate_mhz) == (address, largest)
    sample = backend.read("level_zero:0")
    assert (sample.temperature_celsius, sample.clock_rate_mhz) == (celsius, mhz)
    assert sample.power_watts is None
