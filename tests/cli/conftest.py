"""The command as a user starts it: a child process, on scripted devices unless a test says not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GIB = 2**30

CUDA = {
    "device_id": "cuda:0",
    "name": "NVIDIA GeForce RTX 4090",
    "vendor": "NVIDIA",
    "backend": "fake",
    "runtime": "cuda",
    "hardware_id": "GPU-1111",
    "memory_bytes": 24 * GIB,
    "driver_version": "550.54.14",
    "sample": {
        "memory_used_bytes": 1 * GIB,
        "memory_total_bytes": 24 * GIB,
        "compute_utilization_percent": 3,
        "temperature_celsius": 41,
        "power_watts": 31.2,
    },
}
ROCM = {
    "device_id": "rocm:0",
    "name": "AMD Radeon RX 7900 XTX",
    "vendor": "AMD",
    "backend": "fake",
    "runtime": "rocm",
    "hardware_id": "GPU-2222",
    "memory_bytes": 20 * GIB,
    "sample": {"memory_used_bytes": 16 * GIB, "memory_total_bytes": 20 * GIB},
}
HOST = {
    "device_id": "cpu:0",
    "name": "A processor",
    "vendor": "somebody",
    "backend": "fake",
    "runtime": "cpu",
    "device_class": "host",
    "memory_bytes": 16 * GIB,
    "slots": 2,
    "sample": {"memory_used_bytes": 2 * GIB, "memory_total_bytes": 16 * GIB},
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes these devices the only ones of the children of this test."""

    def write(*devices: dict[str, Any], **fields: Any) -> Path:
        path = tmp_path / "devices.json"
        path.write_text(json.dumps({"devices": list(devices), **fields}))
        monkeypatch.setenv("EXO_GPU_FAKE", str(path))
        return path

    return write


@pytest.fixture
def devices(script: Callable[..., Path]) -> Path:
    """An NVIDIA card, an AMD card and the host, all scripted."""
    return script(CUDA, ROCM, HOST)


@pytest.fixture(scope="session")
def command_line() -> Callable[..., list[str]]:
    """The words by which a shell would start ``exo-gpu``."""
    return lambda *arguments: [sys.executable, "-m", "exo.gpu", *arguments]


@pytest.fixture
def exo_gpu(
    tmp_path: Path, command_line: Callable[..., list[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``exo-gpu`` in a child process of its own, in a folder of its own."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command_line(*arguments),
            input=stdin.encode(errors="surrogateescape"),
            env=os.environ | variables,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        # Line ends stay as they are, unlike under ``text=True``.
        out, err = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


@pytest.fixture
def remembered(state_folder: Path) -> Path:
    """A registry that knows a card which is not in this machine; its path."""
    path = Path(os.environ["EXO_GPU_REGISTRY"])
    path.parent.mkdir(parents=True, exist_ok=True)
    device = {
        "device_id": "cuda:7",
        "name": "NVIDIA Museum Piece",
        "vendor": "NVIDIA",
        "backend": "cuda",
        "hardware_id": "GPU-0123",
    }
    known = {"backend": "cuda", "key": "GPU-0123", "device": device, "last_seen": 1_600_000_000}
    path.write_text(json.dumps({"known": [known]}))
    return path


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reader's own time zone is UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()
