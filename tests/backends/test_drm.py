"""DRM cards as sysfs shows them: identity, sensors, and what each error means."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.backends import drm
from exo.gpu.vocabulary.errors import DeviceLost, ReadingMissing
from tests.backends.sysfs import ARC, RX, at, broken_file, card

AMD = "1002"
BUSY = "device/gpu_busy_percent"


def only(root: Path) -> drm.Card:
    (found,) = drm.cards(root, vendor=AMD)
    return found


def test_cards_come_in_pci_order_without_connectors(tmp_path: Path) -> None:
    """Rule: cards of the vendor alone, in the order of the bus, however the kernel numbered them."""
    card(tmp_path, 0, RX, at("0000:41:00.0", "1002:744C", "amdgpu"))
    card(tmp_path, 1, ARC)
    card(tmp_path, 10, RX, at("0000:03:00.0", "1002:744C", "amdgpu"))
    found = drm.cards(tmp_path, vendor=AMD)
    assert [(entry.pci_address, entry.number) for entry in found] == [
        ("0000:03:00.0", 10),
        ("0000:41:00.0", 0),
    ]
    assert (found[0].driver, found[0].pci_id) == ("amdgpu", "1002:744c")


def test_no_sysfs_means_no_cards(tmp_path: Path) -> None:
    """Rule: a machine without DRM has no cards, and nothing is raised."""
    assert drm.cards(tmp_path / "absent", vendor=AMD) == []


def test_a_card_off_the_bus_is_of_no_vendor(tmp_path: Path) -> None:
    """Rule: a card without a uevent (a platform device) is passed over."""
    card(tmp_path, 0, {"device/gpu_busy_percent": "1"})
    assert drm.cards(tmp_path, vendor=AMD) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "no permission to read"),
        (errno.ENODATA, "no data for"),
        (errno.EBUSY, "too busy to tell"),
        (errno.EOPNOTSUPP, "does not support"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_each_error_of_sysfs_has_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    """Rule: an attribute that cannot be read is missing with the kernel's reason."""
    card(tmp_path, 0, RX)
    found = only(tmp_path)
    broken_file(monkeypatch, "gpu_busy_percent", code)
    with pytest.raises(ReadingMissing, match=reason):
        found.text("device/gpu_busy_percent")


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENXIO])
def test_a_card_that_is_gone_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Rule: "no such device" concerns the whole card, not one attribute."""
    card(tmp_path, 0, RX)
    found = only(tmp_path)
    broken_file(monkeypatch, "gpu_busy_percent", code)
    with pytest.raises(DeviceLost):
        found.number_of("device/gpu_busy_percent")


@pytest.mark.parametrize("text", ["", "N/A", "12 34", "0x10", "-1", str(2**64 - 1)])
def test_text_that_is_no_reading_is_missing(tmp_path: Path, text: str) -> None:
    """Rule: garbage, negative amounts and leaked sentinels never become numbers."""
    card(tmp_path, 0, RX, {"device/mem_info_vram_used": text})
    with pytest.raises(ReadingMissing, match="holds"):
        only(tmp_path).number_of("device/mem_info_vram_used")


@given(number=st.integers())
def test_a_number_is_within_its_bounds_or_missing(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    """Rule: what number_of returns lies within the bounds that it was asked for."""
    root = tmp_path_factory.getbasetemp() / "numbers"
    card(root, 0, {**at("0000:03:00.0", "1002:744C", "amdgpu"), BUSY: str(number)})
    try:
        assert 0 <= only(root).number_of(BUSY, high=100) <= 100
    except ReadingMissing:
        assert not 0 <= number <= 100


def test_a_missing_sensor_folder_or_label_is_named(tmp_path: Path) -> None:
    """Rule: a card without hwmon, or without the label, says which sensor is missing."""
    card(tmp_path, 0, RX)
    assert only(tmp_path).labelled("temp", ["edge"]) == "device/hwmon/hwmon3/temp2_input"
    with pytest.raises(ReadingMissing, match="no temp sensor labelled pkg or card"):
        only(tmp_path).labelled("temp", ["pkg", "card"])
    bare = {name: text for name, text in RX.items() if "hwmon" not in name}
    card(tmp_path / "bare", 0, bare)
    with pytest.raises(ReadingMissing, match="no hwmon sensors"):
        only(tmp_path / "bare").labelled("temp", ["edge"])


def test_a_binary_attribute_that_is_absent_has_its_reason(tmp_path: Path) -> None:
    """Rule: what cannot be opened is missing with the reason, a folder in its place too."""
    folder = card(tmp_path, 0, RX)
    with pytest.raises(ReadingMissing, match="the driver has no device/gpu_metrics"):
        only(tmp_path).whole("device/gpu_metrics")
    (folder / "device/gpu_metrics").mkdir()
    with pytest.raises(ReadingMissing, match="device/gpu_metrics: Is a directory"):
        only(tmp_path).whole("device/gpu_metrics")


def test_the_first_source_that_tells_counts() -> None:
    """Rule: of several sources the first that gives a value is taken; else all reasons are told."""

    def silent(reason: str) -> float:
        raise ReadingMissing(reason)

    assert drm.first(lambda: silent("no sensor"), lambda: 2, lambda: 3) == 2
    with pytest.raises(ReadingMissing, match=r"^no sensor; no table$"):
        drm.first(
            lambda: silent("no sensor"), lambda: silent("no table"), lambda: silent("no sensor")
        )


@pytest.mark.parametrize(
    ("text", "generation"),
    [("2.5 GT/s PCIe", 1), ("16.0 GT/s PCIe", 4), ("64.0 GT/s PCIe", 6), ("Unknown", None)],
)
def test_a_links_speed_is_a_generation(tmp_path: Path, text: str, generation: int | None) -> None:
    """Rule: the transfer rate tells the generation; an unknown one is missing with its text."""
    card(tmp_path, 0, RX, {"device/current_link_speed": text})
    if generation is None:
        with pytest.raises(ReadingMissing, match="holds 'Unknown'"):
            only(tmp_path).link_generation()
    else:
        assert only(tmp_path).link_generation() == generation
