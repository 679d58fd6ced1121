"""What Vulkan drivers said before, valid while nothing that they depend on has changed."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Answers kept at most: one for each environment, and work pinned to one driver has its own.
MOST = 8

# What the loader and the drivers read of the environment, by how the names begin: the loader's
# documentation (LoaderInterfaceArchitecture.md), Mesa's (envvars.rst) and the dynamic linker's.
_PREFIXES = (
    "__", "AMD_", "ANV_", "CUDA_", "DISABLE_", "DRI_", "ENABLE_", "GALLIUM_", "HIP_", "HOME",
    "INTEL_", "LD_", "LIBGL_", "LP_", "LVP_", "MESA_", "NODEVICE_SELECT", "NVIDIA_", "RADV_",
    "ROCR_", "VK_", "XDG_", "ZE_",
)  # fmt: skip

# Where drivers see hardware come and go, and whether this user may open it.
_NODES = ("dev/dri/*", "dev/nvidia*", "dev/kfd")
# Which driver modules are loaded, the loader's list of libraries, and this boot.
_TEXTS = ("proc/driver/nvidia/version", "proc/sys/kernel/random/boot_id")
_FILES = ("etc/ld.so.cache",)

_LISTING = Path(__file__).with_name("vulkan_listing.py")

Answer = list[dict[str, Any]]


class _Kept(msgspec.Struct, frozen=True):
    """An answer, and the state of the libraries that gave it."""

    drivers: Answer
    libraries: str


def recall_or_ask(
    answers: dict[str, str] | None,
    manifests: list[str],
    environ: Mapping[str, str],
    ask: Callable[[], Answer],
    *,
    root: Path = Path("/"),
) -> Answer:
    """The drivers' answer of an earlier time where it still holds, else their answer now.

    It holds while all of these are as they were: the manifests and the libraries that they name
    (path, size, time of change), the variables that loader and drivers read, the device files
    and whether they may be opened, the kernel's NVIDIA driver, the linker's cache and the boot.
    An answer in which a driver failed is never kept. ``root`` is where the system's files lie.
    """
    if answers is None:
        return ask()
    key = _fingerprint(manifests, environ, root)
    kept = _decoded(answers.get(key))
    if kept is not None and kept.libraries == _libraries(kept.drivers):
        return kept.drivers
    drivers = ask()
    answers.pop(key, None)
    if not any("reason" in driver for driver in drivers):
        while len(answers) >= MOST:
            answers.pop(next(iter(answers)), None)
        answers[key] = msgspec.json.encode(_Kept(drivers, _libraries(drivers))).decode()
    return drivers


def _decoded(text: str | None) -> _Kept | None:
    try:
        return None if text is None else msgspec.json.decode(text, type=_Kept)
    except msgspec.MsgspecError:
        return None


def _fingerprint(manifests: list[str], environ: Mapping[str, str], root: Path) -> str:
    nodes = sorted(path for pattern in _NODES for path in root.glob(pattern))
    state = {
        "manifests": [(path, _state(Path(path)), _named(Path(path))) for path in manifests],
        "listing": _state(_LISTING),
        "variables": sorted(
            (name, value) for name, value in environ.items() if name.startswith(_PREFIXES)
        ),
        "nodes": [(str(path), _state(path), os.access(path, os.R_OK | os.W_OK)) for path in nodes],
        "texts": [_text(root / name) for name in _TEXTS],
        "files": [_state(root / name) for name in _FILES],
    }
    # Against change, not against malice: whoever may write these files needs no collision.
    return f"{zlib.crc32(msgspec.json.encode(state)):08x}"


def _libraries(drivers: Iterable[dict[str, Any]]) -> str:
    """The state of the libraries that the drivers said they are."""
    paths = [str(driver.get("library", "")) for driver in drivers]
    states = [(path, _state(Path(path)) if "/" in path else None) for path in paths]
    return msgspec.json.encode(states).decode()


def _named(manifest: Path) -> tuple[str, list[int] | None]:
    """The library that a manifest names, relative to its own folder where it is a path."""
    try:
        name = str(msgspec.json.decode(manifest.read_bytes())["ICD"]["library_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None
    return name, _state(manifest.parent / name) if "/" in name else None


def _state(path: Path) -> list[int] | None:
    """Size, time of change, number and device of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    if found.st_rdev:  # a device's file: its times say who used it, not what it is
        return [found.st_rdev, found.st_uid, found.st_gid, found.st_mode]
    return [found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
