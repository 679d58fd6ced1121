"""What amdgpu's compute driver (KFD) tells of a card: compute units and instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TOPOLOGY = Path("/sys/class/kfd/kfd/topology")


class ComputeNode(NamedTuple):
    """Facts of one card; None where the driver does not tell.

    ``target`` is the name that compilers give its instruction set, such as gfx90a.
    """

    compute_units: int | None
    target: str | None
    clock_rate_mhz: int | None


NOTHING = ComputeNode(None, None, None)


def node(pci_address: str | None, topology: Path = TOPOLOGY) -> ComputeNode:
    """The compute node at a place on the bus (``rocminfo``); all None where there is none."""
    for path in sorted((topology / "nodes").glob("*/properties")):
        told = _properties(path)
        if told.get("simd_count") and _address(told) == pci_address:
            return _described(told)
    return NOTHING


def _described(told: dict[str, int]) -> ComputeNode:
    lanes, version = told.get("simd_per_cu"), told.get("gfx_target_version")
    # 90010 is major 9, minor 0, stepping 10 (kernel, kfd_device.c); names count in hexadecimal.
    major, rest = divmod(version or 0, 10_000)
    return ComputeNode(
        compute_units=told["simd_count"] // lanes if lanes else None,
        target=f"gfx{major}{rest // 100:x}{rest % 100:x}" if version else None,
        clock_rate_mhz=told.get("max_engine_clk_fcompute") or None,
    )


def _address(told: dict[str, int]) -> str:
    """``location_id`` is bus, device and function as PCI packs them."""
    place = told.get("location_id", 0)
    domain = told.get("domain", 0)
    return f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"


def _properties(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {
        pair[0]: int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()
    }
