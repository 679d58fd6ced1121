"""Which Vulkan driver manifests the loader would read here: the universe of the backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LISTS = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
"""The variables that replace the standard folders; loaders before 1.3.207 know the second only."""

ADDED = "VK_ADD_DRIVER_FILES"

NOTHING = os.devnull
"""As the only manifest it hides every driver: an empty list would mean "look everywhere"."""

# The order of the loader's own documentation (LoaderDriverInterface.md, Linux).
_FOLDERS = (
    ("XDG_CONFIG_HOME", "~/.config"),
    ("XDG_CONFIG_DIRS", "/etc/xdg"),
    ("", "/usr/local/etc"),
    ("", "/etc"),
    ("XDG_DATA_HOME", "~/.local/share"),
    ("XDG_DATA_DIRS", "/usr/local/share:/usr/share"),
)


def restriction(environ: Mapping[str, str]) -> list[str] | None:
    """The manifests that the environment names, or None where it restricts nothing."""
    for name in LISTS:
        if environ.get(name):
            return _files(environ[name].split(os.pathsep))
    return None


def universe(environ: Mapping[str, str], *, root: Path = Path("/")) -> list[str]:
    """Every manifest, sorted; ``root`` is where the standard folders lie."""
    named = restriction(environ)
    if named is None:
        folders = [
            str(root / folder.lstrip("/") / "vulkan/icd.d")
            for variable, default in _FOLDERS
            for folder in _expanded(environ.get(variable) or default, environ)
        ]
        named = _files([*environ.get(ADDED, "").split(os.pathsep), *folders])
    return sorted({path for path in named if path != NOTHING})


def _expanded(folders: str, environ: Mapping[str, str]) -> list[str]:
    home = environ.get("HOME", "")
    return [
        folder.replace("~", home, 1) if folder.startswith("~") else folder
        for folder in folders.split(os.pathsep)
        if folder and (home or not folder.startswith("~"))
    ]


def _files(paths: Iterable[str]) -> list[str]:
    """The paths, with each folder replaced by the manifests in it."""
    files: list[str] = []
    for path in paths:
        if not path:
            continue
        if Path(path).is_dir():
            files += sorted(str(entry) for entry in Path(path).glob("*.json"))
        elif Path(path).suffix == ".json" or Path(path).exists():
            files.append(path)
    return files
