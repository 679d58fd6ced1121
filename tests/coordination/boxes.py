"""Scripted machines for tests of coordination."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GIB = 2**30


def device(device_id: str, vendor: str, runtime: str, **more: Any) -> dict[str, Any]:
    """One entry of a script of fake devices, idle and with 8 GiB unless said otherwise."""
    total = more.pop("memory_bytes", 8 * GIB)
    sample = {"memory_total_bytes": total, "memory_used_bytes": 0, "compute_utilization_percent": 0}
    return {
        "device_id": device_id,
        "name": f"Fake {vendor}",
        "vendor": vendor,
        "backend": "fake",
        "runtime": runtime,
        "hardware_id": f"FAKE-{device_id}",
        "memory_bytes": total,
        "sample": sample | more.pop("sample", {}),
        **more,
    }


def host(slots: int = 2) -> dict[str, Any]:
    """The host's CPU."""
    pool = {"device_class": "host", "memory_pool": "host", "slots": slots}
    return device("cpu:0", "Host", "cpu", **pool)


def write_box(folder: Path, *devices: dict[str, Any]) -> Path:
    """The script of a machine that has these devices."""
    path = folder / "box.json"
    path.write_text(json.dumps({"devices": list(devices)}))
    return path
