"""Builds the fake CUDA driver with the system's compiler; the fake NVML's file describes it too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SONAME = "libcuda.so.1"


def build(folder: Path) -> Path:
    """The library; its name within is the real one's, so that a binding finds it once it is loaded.

    Raises:
        FileNotFoundError: where no C compiler is installed.

    """
    library = folder / SONAME
    command = [os.environ.get("CC", "cc"), "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, f"-Wl,-soname,{SONAME}", "-o", str(library), str(SOURCE)], check=True)
    return library
