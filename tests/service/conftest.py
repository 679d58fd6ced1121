"""The service as a user starts it: a child process on scripted devices, spoken to over loopback."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts a service, as often as a test likes."""
    started: list[Served] = []
    folders: list[Path] = []

    def start(*options: str, folder: Path | None = None, **more: Any) -> Served:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="exo-"))
            folders.append(folder)
        started.append(Served(folder, *options, **more))
        return started[-1]

    yield start
    for one in started:
        one.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def served(clean_environment: None) -> Iterator[Served]:
    """One service for all tests of a file, which change nothing of it."""
    folder = Path(tempfile.mkdtemp(prefix="exo-"))
    service = Served(folder)
    with service.client() as client:
        service.until_ready(client)
    yield service
    service.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """Somebody who asks that service."""
    with served.client() as client:
        yield client


@pytest.fixture
def write_machine(tmp_path: Path) -> Callable[..., Path]:
    """Writes a script of devices; called again it changes them under a service that runs."""
    path = tmp_path / "machine.json"

    def write(*devices: dict[str, Any], **fields: Any) -> Path:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"devices": list(devices), **fields}))
        fresh.replace(path)
        return path

    return write
