"""Which driver manifests the loader would read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exo.gpu.backends.vulkan_manifests import NOTHING, universe


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A file system with manifests in three standard folders, and one beside them."""
    for name in ("etc/vulkan/icd.d/b.json", "usr/share/vulkan/icd.d/a.json", "extra/c.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (tmp_path / "usr/share/vulkan/icd.d/readme.txt").write_text("no manifest")
    home = tmp_path / "home/someone/.local/share/vulkan/icd.d/d.json"
    home.parent.mkdir(parents=True)
    home.write_text("{}")
    return tmp_path


def names(root: Path, **environ: str) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in universe(environ, root=root)]


def test_the_standard_folders(system: Path) -> None:
    """Rule: without any variable the system's folders are read, sorted by path."""
    expected = ["etc/vulkan/icd.d/b.json", "usr/share/vulkan/icd.d/a.json"]
    assert names(system) == expected
    assert len(names(system, HOME="/home/someone")) == 3


def test_xdg_folders_replace_their_defaults(system: Path) -> None:
    """Rule: XDG_DATA_DIRS stands for /usr/local/share and /usr/share."""
    assert names(system, XDG_DATA_DIRS="/nowhere") == ["etc/vulkan/icd.d/b.json"]


def test_added_drivers_come_on_top(system: Path) -> None:
    """Rule: VK_ADD_DRIVER_FILES adds to the standard folders, a folder for all in it."""
    added = names(system, VK_ADD_DRIVER_FILES=str(system / "extra"))
    assert added[0] == "etc/vulkan/icd.d/b.json"
    assert "extra/c.json" in added
    assert len(added) == 3


@pytest.mark.parametrize("variable", ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"])
def test_named_drivers_are_all_there_is(system: Path, variable: str) -> None:
    """Rule: either variable replaces every folder and the added drivers."""
    only = {variable: str(system / "extra/c.json"), "VK_ADD_DRIVER_FILES": str(system / "etc")}
    assert names(system, **only) == ["extra/c.json"]


def test_the_newer_variable_wins(system: Path) -> None:
    """Rule: VK_DRIVER_FILES comes before VK_ICD_FILENAMES, as in the loader; empty is unset."""
    named = {"VK_ICD_FILENAMES": str(system / "etc/vulkan/icd.d/b.json")}
    both = named | {"VK_DRIVER_FILES": os.pathsep.join([str(system / "extra/c.json"), ""])}
    assert names(system, **both) == ["extra/c.json"]
    assert names(system, **named, VK_DRIVER_FILES="") == ["etc/vulkan/icd.d/b.json"]


def test_nothing_named_is_nothing_found(system: Path) -> None:
    """Rule: the manifest that hides every driver leaves an empty universe."""
    assert universe({"VK_DRIVER_FILES": NOTHING}, root=system) == []
