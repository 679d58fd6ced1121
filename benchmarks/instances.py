"""Instances of R||Cmax: files of the HCSP form, and generated ones of Braun's twelve classes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE = "https://github.com/chgogos/hcsp (folder 512x16)"
CLASSES = [
    f"{kind}_{item}{device}" for kind in "cis" for item in ("hi", "lo") for device in ("hi", "lo")
]
# Ranges of the range-based method: Braun et al., J. Parallel Distrib. Comput. 61 (2001).
ITEM_RANGE = {"hi": 3000.0, "lo": 100.0}
DEVICE_RANGE = {"hi": 1000.0, "lo": 10.0}


def read_folder(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Every instance of the folder and its subfolders, by name; a file says ``items devices``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.name.startswith("u_") or path.suffix == ".hcsp"):
            found[path.name] = read(path)
    if not found:
        sys.exit(f"no instance (u_*) under {folder}; they can be had from {SOURCE}")
    return found


def read(path: Path) -> NDArray[np.float64]:
    """A header ``items devices [anything]``, then the times, item by item."""
    lines = path.read_text(encoding="ascii").split("\n", 1)
    items, devices = (int(word) for word in lines[0].split()[:2])
    times = np.array(lines[1].split(), dtype=np.float64)
    if times.size != items * devices:
        sys.exit(f"{path}: {times.size} times, while its header says {items} x {devices}")
    return times.reshape(items, devices)


def generate(name: str, items: int, devices: int, seed: int) -> NDArray[np.float64]:
    """One of :data:`CLASSES`: consistent, inconsistent or semi-consistent; item, device."""
    kind, ranges = name.split("_")
    lots = np.random.default_rng([seed, CLASSES.index(name)])
    sizes = lots.uniform(1, ITEM_RANGE[ranges[:2]], items)
    times = sizes[:, None] * lots.uniform(1, DEVICE_RANGE[ranges[2:]], (items, devices))
    if kind == "c":
        times.sort(axis=1)
    if kind == "s":
        times[:, ::2] = np.sort(times[:, ::2], axis=1)
    return times
