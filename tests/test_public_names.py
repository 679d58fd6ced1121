"""The front door and its typed half agree, and older callers find everything where it was."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from pathlib import Path

import pytest

import exo.gpu

SOURCE = Path(exo.gpu.__file__)

# Module -> the names that callers of earlier releases import from it.
OLDER_CALLERS = {
    "exo.gpu.backend": ["GPUBackend", "GPUDevice", "MemoryHandle"],
    "exo.gpu.factory": ["GPUBackendFactory", "detect_available_backends"],
    "exo.gpu.discovery": ["GPUDiscoveryService", "discover_gpu_devices"],
    "exo.gpu.telemetry_protocol": [
        "DeviceCapabilities",
        "DeviceRegistration",
        "DeviceScorer",
        "DeviceType",
        "GPUMetrics",
        "Heartbeat",
        "TelemetryProtocol",
    ],
    "exo.gpu.clustering": [
        "DeviceSelector",
        "GPUClusteringManager",
        "TelemetryCollector",
        "WorkloadDistributor",
    ],
}


def typed_homes() -> dict[str, tuple[str, str]]:
    """What the block for type checkers imports: public name -> (module, its name there)."""
    homes: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exo.gpu."):
            for alias in node.names:
                homes[alias.asname or alias.name] = (str(node.module), alias.name)
    return homes


def test_type_checkers_see_the_table_that_runs():
    """Rule: the typed imports and the lazy table name the same objects in the same homes."""
    table = {
        name: (f"exo.gpu.{home}", name)
        if isinstance(home, str)
        else (f"exo.gpu.{home[0]}", home[1])
        for name, home in exo.gpu._HOMES.items()
    }
    assert typed_homes() == table


def test_all_is_sorted_and_is_the_table():
    """Rule: one sorted list of public names, each with a home."""
    assert exo.gpu.__all__ == sorted(exo.gpu.__all__, key=lambda name: (not name.isupper(), name))
    assert set(exo.gpu.__all__) == {*exo.gpu._HOMES, "__version__"}


@pytest.mark.parametrize("name", [name for name in exo.gpu.__all__ if name != "__version__"])
def test_a_name_is_the_object_of_its_home(name):
    """Rule: the front door hands on the object itself, no copy and no wrapper."""
    home = exo.gpu._HOMES[name]
    module, there = (home, name) if isinstance(home, str) else home
    assert getattr(exo.gpu, name) is getattr(importlib.import_module(f"exo.gpu.{module}"), there)


@pytest.mark.parametrize("module", OLDER_CALLERS)
def test_older_callers_find_their_names(module):
    """Rule: the import lines that callers already have keep working."""
    found = importlib.import_module(module)
    for name in OLDER_CALLERS[module]:
        assert getattr(found, name).__name__ == name


def test_version_is_that_of_the_installed_package():
    """Rule: the version is the package's own, and a checkout that was never installed says so."""
    try:
        expected = importlib.metadata.version("exo-gpu")
    except importlib.metadata.PackageNotFoundError:
        expected = "0+unknown"
    assert exo.gpu.__version__ == expected


def test_unknown_names_are_refused_and_known_ones_listed():
    """Rule: the module behaves as any other towards dir() and a wrong name."""
    assert set(exo.gpu.__all__) <= set(dir(exo.gpu))
    with pytest.raises(AttributeError, match="leese"):
        _ = exo.gpu.leese
