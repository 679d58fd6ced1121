"""What every test stands on: its own state folder, no inherited restriction, the drivers, the record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import vulkan_drivers

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ROOT / ".build" / "shown.json"
REQUIRED = "EXO_GPU_REQUIRE_VULKAN"
KEPT = (REQUIRED, "EXO_GPU_BENCH_DATA")  # what the caller tells the tests themselves
RESTRICTIONS = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ONEAPI_DEVICE_SELECTOR",
    "ZE_AFFINITY_MASK",
    "MESA_VK_DEVICE_SELECT",
    "MESA_VK_DEVICE_SELECT_FORCE_DEFAULT_DEVICE",
    "NODEVICE_SELECT",
    "GGML_VK_VISIBLE_DEVICES",
)

# A time says nothing on a loaded machine: pytest's limit ends what hangs.
hypothesis.settings.register_profile("exo", deadline=None, print_blob=True)
hypothesis.settings.load_profile("exo")


def short_folder() -> Path:
    """A fresh folder with a short path: a Unix socket's path may have 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="exo-"))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Nothing that the caller's shell restricts or configures reaches a test."""
    folder = short_folder()
    # Started in the background of a script, we would hand an ignored Ctrl-C on to every program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name in RESTRICTIONS or (name.startswith("EXO_GPU_") and name not in KEPT):
                patch.delenv(name)
        patch.setenv("EXO_GPU_STATE", str(folder))
        patch.setenv("EXO_GPU_REGISTRY", str(folder / "registry" / "devices.json"))
        patch.setenv("EXO_GPU_PROBES", str(folder / "registry" / "probes.json"))
        patch.setenv("EXO_GPU_CONFIG", os.devnull)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def state_folder(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``EXO_GPU_STATE`` of this test alone."""
    folder, registry = short_folder(), short_folder()
    monkeypatch.setenv("EXO_GPU_STATE", str(folder))
    monkeypatch.setenv("EXO_GPU_REGISTRY", str(registry / "devices.json"))
    monkeypatch.setenv("EXO_GPU_PROBES", str(registry / "probes.json"))
    monkeypatch.setenv("EXO_GPU_HISTORY", str(registry / "history.sqlite"))
    monkeypatch.setenv("EXO_GPU_JOBS", str(registry / "jobs"))
    yield folder
    for path in (folder, registry):
        shutil.rmtree(path, ignore_errors=True)


def required_manifest(path: Path | None, rank: int, name: str, package: str) -> Path:
    """The manifest; without it the test is skipped, or fails where that many drivers are required."""
    if path is None:
        message = f"no manifest of {name} on this machine: apt install {package}"
        if int(os.environ.get(REQUIRED, "0")) >= rank:
            pytest.fail(f"{message} ({REQUIRED} requires it)")
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def llvmpipe_manifest() -> Path:
    """The manifest of Mesa's software Vulkan driver."""
    return required_manifest(vulkan_drivers.llvmpipe(), 1, "llvmpipe", "mesa-vulkan-drivers")


@pytest.fixture(scope="session")
def swiftshader_manifest() -> Path:
    """The manifest of SwiftShader, which lies beside Chromium's binary."""
    return required_manifest(vulkan_drivers.swiftshader(), 2, "SwiftShader", "chromium")


@pytest.fixture(scope="session")
def vulkan_manifests(llvmpipe_manifest: Path, swiftshader_manifest: Path) -> list[Path]:
    """Both software drivers: llvmpipe, then SwiftShader."""
    return [llvmpipe_manifest, swiftshader_manifest]


@pytest.fixture
def vulkan_environment(
    vulkan_manifests: list[Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment in which exactly the two software drivers are visible; also set in this process."""
    named = os.pathsep.join(str(path) for path in vulkan_manifests)
    for name in vulkan_drivers.VARIABLES:
        monkeypatch.setenv(name, named)
    return dict(os.environ)


class ShownRecord:
    """Keeps what passed tests marked ``shows`` have shown, also across xdist's workers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.failed: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name != "shows" or report.when != "call":
                continue
            if report.failed:
                self.failed.add((value["backend"], value["ability"]))
            elif report.passed:
                self.rows.append(value | {"test": report.nodeid})

    def pytest_sessionfinish(self) -> None:
        """Write what was shown; an ability with a failed test was not, and a run without any keeps the file."""
        rows = [row for row in self.rows if (row["backend"], row["ability"]) not in self.failed]
        if not rows:
            return
        rows.sort(key=lambda row: (row["backend"], row["ability"], row["level"], row["test"]))
        SHOWN.parent.mkdir(exist_ok=True)
        fresh = SHOWN.with_suffix(".new")
        fresh.write_text(json.dumps(rows, indent=1) + "\n")
        fresh.replace(SHOWN)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that hears every worker's report
        config.pluginmanager.register(ShownRecord(), "exo-gpu-shown")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("shows"):
        backend, ability, level = marker.args
        row = {"backend": backend, "ability": ability, "level": level}
        item.user_properties.append(("shows", row))
