"""Scripted devices for the browser to see, and the browser itself."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

GIB = 2**30

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None
)


def card(number: int, **fields: Any) -> dict[str, Any]:
    """A scripted device that differs from the others."""
    sample = {
        "memory_used_bytes": (number % 24) * GIB,
        "memory_total_bytes": 24 * GIB,
        "compute_utilization_percent": float(number * 37 % 101),
        "temperature_celsius": 30.0 + number % 40,
        "power_watts": 40.0 + number,
    }
    return {
        "device_id": f"cuda:{number}",
        "name": "NVIDIA GeForce RTX 4090",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "hardware_id": f"GPU-{number:04}",
        "memory_bytes": 24 * GIB,
        "sample": sample,
        **fields,
    }


def write(path: Path, *devices: dict[str, Any]) -> Path:
    """A script of devices, replaced as a whole."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"devices": list(devices)}))
    fresh.replace(path)
    return path
