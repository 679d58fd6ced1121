"""Compute nodes of AMD cards, from trees that the tests make."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.gpu.backends import kfd
from exo.gpu.backends.rocm import RocmBackend
from tests.backends.sysfs import RX, card


def node(topology: Path, number: int, text: str) -> None:
    """Write a node's properties."""
    folder = topology / "nodes" / str(number)
    folder.mkdir(parents=True)
    (folder / "properties").write_text(text)


CARD = "simd_count 192\nsimd_per_cu 2\nlocation_id 768\ndomain 0\nmax_engine_clk_fcompute 2500\n"


@pytest.mark.parametrize(
    ("version", "target"), [(110000, "gfx1100"), (90010, "gfx90a"), (90402, "gfx942"), (0, None)]
)
def test_a_card_is_known_by_its_place_on_the_bus(
    tmp_path: Path, version: int, target: str | None
) -> None:
    """Rule: the processor's node and other cards' nodes are passed over."""
    node(tmp_path, 0, "simd_count 0\nlocation_id 0\n")
    node(tmp_path, 1, CARD.replace("768", "25600"))
    node(tmp_path, 2, f"{CARD}gfx_target_version {version}\n")
    assert kfd.node("0000:03:00.0", tmp_path) == (96, target, 2500)
    assert kfd.node("0000:05:00.0", tmp_path) == kfd.NOTHING


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    """Rule: without the driver, with garbage or with a folder in a file's place all is None."""
    assert kfd.node("0000:03:00.0", tmp_path / "absent") == kfd.NOTHING
    (tmp_path / "nodes/0/properties").mkdir(parents=True)
    node(tmp_path, 1, "simd_count 4\nlocation_id 768\nsimd_per_cu what\ngarbage\n")
    assert kfd.node("0000:03:00.0", tmp_path) == (None, None, None)


def test_a_device_carries_what_its_node_tells(tmp_path: Path) -> None:
    """Rule: compute units and instruction set are told, but a sleeping card is not asked."""
    node(tmp_path, 1, f"{CARD}gfx_target_version 110000\n")
    root = tmp_path / "drm"
    card(root, 0, RX)
    (device,) = RocmBackend(environ={}, root=root, topology=tmp_path).find()
    assert (device.compute_units, device.compute_capability) == (96, "gfx1100")
    assert device.clock_rate_mhz == 2500
    card(root, 0, RX, {"device/power/runtime_status": "suspended"})
    (asleep,) = RocmBackend(environ={}, root=root, topology=tmp_path).find()
    assert (asleep.compute_units, asleep.clock_rate_mhz) == (None, None)
    assert asleep.hardware_id == device.hardware_id


def test_a_card_without_a_node_tells_its_clock_levels(tmp_path: Path) -> None:
    """Rule: the highest level of the shader clock counts; without any the clock is unknown."""
    card(tmp_path, 0, RX, {"device/pp_dpm_sclk": "0: 500Mhz\n1: 31Mhz *\n2: 2219Mhz"})
    (device,) = RocmBackend(environ={}, root=tmp_path, topology="/nonexistent").find()
    assert device.clock_rate_mhz == 2219
    card(tmp_path, 0, RX, {"device/pp_dpm_sclk": ""})
    (device,) = RocmBackend(environ={}, root=tmp_path, topology="/nonexistent").find()
    assert device.clock_rate_mhz is None
