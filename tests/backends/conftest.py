"""Fakes and real drivers for the backends, and what a passed test says it ran on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends.nvml.fake_nvml import VARIABLE, FakeNvml, build
from tests.backends.vulkan import broken_driver


@pytest.fixture
def shown_on(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Says which model and driver a test marked ``shows`` ran on."""

    def tell(model: str, driver: str) -> None:
        for name, row in request.node.user_properties:
            if name == "shows":
                row.update(model=model, driver=driver)

    return tell


def built(folder: Path, *, half: bool = False) -> Path:
    try:
        return build(folder, half=half)
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVIDIA library."""
    return built(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def half_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVIDIA library of an old driver, without the newer half of its functions."""
    return built(tmp_path_factory.mktemp("nvml-half"), half=True)


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A fake NVIDIA driver without devices so far."""
    description = tmp_path / "nvml.txt"
    monkeypatch.setenv(VARIABLE, str(description))
    return FakeNvml(nvml_library, description)


@pytest.fixture(scope="session")
def broken_manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifests of a Vulkan driver that crashes and of one that hangs."""
    folder = tmp_path_factory.mktemp("vulkan")
    try:
        return {
            "crashes": broken_driver.build(folder, crash=True),
            "hangs": broken_driver.build(folder, crash=False),
        }
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")
