"""Makes sysfs and procfs trees of graphics cards and their users, and finds the captured trees of real machines."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from types import ModuleType

import pytest

# Read when the tests are collected: each test runs in an environment without our variables.
DATA = os.environ.get("EXO_GPU_BENCH_DATA")

RX = {
    "device/uevent": "DRIVER=amdgpu\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0",
    "device/power/runtime_status": "active",
    "device/unique_id": "b6c8ee2f5e6e3b2a",
    "device/product_name": "Radeon RX 7900 XTX",
    "device/gpu_busy_percent": "42",
    "device/mem_info_vram_total": str(24 * 2**30),
    "device/mem_info_vram_used": str(2**30),
    "device/hwmon/hwmon3/temp1_label": "junction",
    "device/hwmon/hwmon3/temp1_input": "71000",
    "device/hwmon/hwmon3/temp2_label": "edge",
    "device/hwmon/hwmon3/temp2_input": "61500",
    "device/hwmon/hwmon3/power1_average": "250500000",
    "device/hwmon/hwmon3/freq1_label": "sclk",
    "device/hwmon/hwmon3/freq1_input": "2400000000",
}
ARC = {
    "device/uevent": "DRIVER=xe\nPCI_ID=8086:E20B\nPCI_SLOT_NAME=0000:09:00.0",
    "device/power/runtime_status": "active",
    "device/tile0/gt0/freq0/act_freq": "1850",
    "device/tile0/gt0/freq0/max_freq": "2850",
    "device/hwmon/hwmon1/temp2_label": "pkg",
    "device/hwmon/hwmon1/temp2_input": "54000",
}
IRIS = {
    "device/uevent": "DRIVER=i915\nPCI_ID=8086:9A49\nPCI_SLOT_NAME=0000:00:02.0",
    "device/power/runtime_status": "active",
    "gt_act_freq_mhz": "350",
    "gt_max_freq_mhz": "1300",
    "device/hwmon/hwmon2/temp1_input": "47000",
    "device/hwmon/hwmon2/power1_input": "9500000",
}

# Bytes of each version of gpu_metrics, as the kernel's compiler lays it out (sizeof in kgd_pp_interface.h).
TABLE_SIZES = {
    (1, 0): 80,
    (1, 1): 96,
    (1, 2): 104,
    (1, 3): 120,
    (1, 4): 288,
    (1, 5): 360,
    (1, 6): 1664,
    (1, 7): 2208,
    (1, 8): 3360,
    (2, 0): 120,
    (2, 1): 120,
    (2, 2): 128,
    (2, 3): 152,
    (2, 4): 168,
    (3, 0): 264,
}


def card(root: Path, number: int, *trees: dict[str, str | None]) -> Path:
    """Write a card's attributes; later trees win, and None leaves an attribute out."""
    folder = root / f"card{number}"
    attributes: dict[str, str | None] = {}
    for tree in trees:
        attributes |= tree
    for name, text in attributes.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    (root / f"card{number}-HDMI-A-1").mkdir(exist_ok=True)  # a connector, as the kernel shows it
    return folder


def table(version: tuple[int, int], *fields: tuple[int, str, int], size: int = 0) -> bytes:
    """A gpu_metrics table as the driver makes it: all ones, then what it knows."""
    size = size or TABLE_SIZES[version]
    data = bytearray(b"\xff" * size)
    struct.pack_into("<HBB", data, 0, size, *version)
    for offset, code, value in fields:
        struct.pack_into(f"<{code}", data, offset, value)
    return bytes(data)


def client(
    proc: Path, pid: int, descriptor: int, text: str, target: str = "/dev/dri/renderD128"
) -> None:
    """Write what a process has open, and what the driver says of it."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True, exist_ok=True)
    link = proc / str(pid) / "fd" / str(descriptor)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    (proc / str(pid) / "fdinfo" / str(descriptor)).write_text(text)


def broken_file(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """The operating system's error for every file of this name that exists, from now on."""
    for module in (io, os):
        _refuse(monkeypatch, module, name, code)


def _refuse(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, code: int) -> None:
    opened = module.open

    def refuse(file: object, *arguments: object, **options: object) -> object:
        if Path(str(file)).name == name and Path(str(file)).exists():
            raise OSError(code, os.strerror(code), str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(module, "open", refuse)


def at(address: str, pci_id: str, driver: str) -> dict[str, str]:
    """The uevent of a card at a place on the bus."""
    return {"device/uevent": f"DRIVER={driver}\nPCI_ID={pci_id}\nPCI_SLOT_NAME={address}"}


def captured(vendor: str, model: str) -> Path:
    """The captured tree of a real machine, or a skip where the data are not here."""
    folder = Path(DATA or "") / "sysfs" / vendor / model
    if not DATA or not folder.is_dir():
        pytest.skip("EXO_GPU_BENCH_DATA names no captured sysfs trees")
    return folder
