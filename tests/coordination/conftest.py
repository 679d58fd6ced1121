"""Scripted machines, and functions that workers find by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "execution"))

from boxes import device, host, write_box


@pytest.fixture
def use_box(tmp_path, monkeypatch):
    """Makes this process, and all it starts, see the given fake devices and no other."""

    def use(*devices):
        path = write_box(tmp_path, *devices)
        monkeypatch.setenv("EXO_GPU_FAKE", str(path))
        return path

    return use


@pytest.fixture
def two_fakes(use_box):
    """Two equal NVIDIA cards and the host."""
    return use_box(device("cuda:0", "NVIDIA", "cuda"), device("cuda:1", "NVIDIA", "cuda"), host())
