"""Builds a Vulkan driver with two equal cards out of a driver with one, with its manifest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")

OPENED = "TWIN_DRIVER_OPENED"
"""Names the file that gets the place, 0 or 1, of each card that is opened."""


def build(folder: Path, real: Path) -> Path:
    """The manifest of two cards, both of them the first one of the driver of another manifest.

    Raises:
        FileNotFoundError: where no C compiler is installed.

    """
    described = json.loads(real.read_text())["ICD"]
    named = described["library_path"]
    beside = real.parent / named
    target = str(beside.resolve()) if "/" in named else named
    library = folder / "libtwin.so"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, f'-DREAL="{target}"', "-o", str(library), str(SOURCE)], check=True)
    manifest = folder / "twin_icd.json"
    described = {"library_path": str(library), "api_version": described["api_version"]}
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": described}))
    return manifest
