"""DRM cards copied out of sysfs, as backends read them; for captures that become fixtures."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.backend import call_with_deadline
from exo.gpu.backends import drm

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("exo.gpu.backends.capture")

MOST_BYTES = 64 * 1024
"""Larger files are left out: no reading is as long."""

# A card whose driver hangs is left out.
CARD_SECONDS = 5.0

_MOST_FILES = 4000
_DEEPEST = 6

# The configuration space and the firmware hold serial numbers and no readings; a screen's EDID
# names its owner's screen; the others are no attributes but gates.
_NEVER = frozenset({"config", "edid", "remove", "rescan", "reset", "rom", "vpd"})
# Of what is not text, what backends read.
_BINARY = frozenset({"gpu_metrics"})
# Reading these wakes no sleeping card; the same that backends ask one.
_ASLEEP = (
    "device/uevent",
    "device/power/runtime_status",
    "device/unique_id",
    "device/mem_info_vram_total",
    "device/product_name",
)


def capture(root: Path = drm.SYSFS) -> dict[str, bytes]:
    """The readable attributes of all cards under ``root``, by path from there.

    Only what everybody may read, in files under 64 KiB; of a sleeping card what wakes it not.
    """
    found: dict[str, bytes] = {}
    folders = sorted(root.glob("card*")) if root.is_dir() else []
    for folder in folders:
        if not folder.name.removeprefix("card").isdecimal():
            continue
        try:
            found |= call_with_deadline(
                lambda folder=folder: _card(folder),
                seconds=CARD_SECONDS,
                name=f"exo-gpu-capture-{folder.name}",
            )
        except (OSError, TimeoutError) as error:
            logger.warning("%s was left out: %s", folder, error)
    return found


def _card(folder: Path) -> dict[str, bytes]:
    number = int(folder.name.removeprefix("card"))
    sleeping = drm.Card(folder, number).sleeping
    names = iter(_ASLEEP) if sleeping else _attributes(folder)
    found: dict[str, bytes] = {}
    for name in names:
        data = _contents(folder / name)
        if data is not None:
            found[f"{folder.name}/{name}"] = data
        if len(found) >= _MOST_FILES:
            break
    return found


def _attributes(folder: Path) -> Iterator[str]:
    """Names of the files of a card and of its device; links lead elsewhere, or back here."""
    for start in (folder, folder / "device"):
        for path, folders, files in os.walk(start):
            place = Path(path).relative_to(start)
            if len(place.parts) >= _DEEPEST:
                folders.clear()
            folders[:] = sorted(name for name in folders if not _elsewhere(Path(path), name))
            for name in sorted(files):
                yield str((Path(path) / name).relative_to(folder))


def _elsewhere(parent: Path, name: str) -> bool:
    return name in {"drm", "device"} or (parent / name).is_symlink()


def _contents(path: Path) -> bytes | None:
    """The bytes of an attribute; None for what is no attribute, or is nobody's to see."""
    if path.name in _NEVER or path.name.startswith("resource"):
        return None
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or not facts.st_mode & stat.S_IROTH:
            return None
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES)
    except OSError:
        return None
    if len(data) == MOST_BYTES or (b"\0" in data and path.name not in _BINARY):
        return None
    return data
