"""Builds Vulkan drivers that crash or hang, with their manifests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path, *, crash: bool) -> Path:
    """The manifest of a driver that crashes, or else hangs, when it is opened.

    Raises:
        FileNotFoundError: where no C compiler is installed.

    """
    name = "crashing" if crash else "hanging"
    library = folder / f"lib{name}.so"
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-shared", "-fPIC"]
    flags = ["-DCRASH"] if crash else []
    subprocess.run([*command, *flags, "-o", str(library), str(SOURCE)], check=True)
    manifest = folder / f"{name}_icd.json"
    described = {"library_path": str(library), "api_version": "1.3.0"}
    manifest.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": described}))
    return manifest
