"""Where processes of this machine and boot meet: the directory of the lease store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.file_systems import NETWORK_FILE_SYSTEMS, file_system
from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping


class StorePlace(msgspec.Struct, frozen=True):
    """The directory of the store, who shares it, and why it was chosen."""

    path: Path
    shared_by: str
    reason: str


def choose_place(environ: Mapping[str, str]) -> StorePlace:
    """The directory that all users of this machine share, unless ``EXO_GPU_STATE`` names one."""
    chosen = environ.get("EXO_GPU_STATE")
    if chosen:
        return StorePlace(Path(chosen), "whoever sets the same EXO_GPU_STATE", "EXO_GPU_STATE")
    if Path("/run/exo-gpu").is_dir():
        reason = "made by the administrator"
        return StorePlace(Path("/run/exo-gpu"), "all users who may write there", reason)
    if sys.platform == "linux" and Path("/dev/shm").is_dir():  # noqa: S108 - shared on purpose
        reason = "kept in memory, gone with the boot"
        return StorePlace(Path("/dev/shm/exo-gpu"), "all users of this machine", reason)  # noqa: S108
    reason = "no /run/exo-gpu and no /dev/shm here"
    return StorePlace(Path("/tmp/exo-gpu"), "all users of this machine", reason)  # noqa: S108


def prepare(place: StorePlace) -> Path:
    """Make the directory where it is missing, and give it back.

    Raises:
        StoreError: naming the directory, when it cannot be made or lies on a network file
            system.

    """
    try:
        if not place.path.is_dir():
            place.path.mkdir(parents=True, exist_ok=True)
            # Everybody's, and nobody removes another's files: as /tmp itself.
            place.path.chmod(0o1777)
        (place.path / "locks").mkdir(exist_ok=True)
        _open_to_all(place.path / "locks")
    except OSError as error:
        advice = "set EXO_GPU_STATE to a local directory that you may write"
        raise StoreError(f"no lease store at {place.path}: {error}; {advice}") from error
    # Locks are not dependable there, and another machine's boot would mix in.
    kind = file_system(place.path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{place.path} is on {kind}, a network file system, where locks cannot be trusted; "
            "set EXO_GPU_STATE to a local directory"
        )
    return place.path


def _open_to_all(directory: Path) -> None:
    try:
        directory.chmod(0o1777)
    except PermissionError:
        return  # another user's, who opened it already


def boot_id(proc: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """A name for this boot of this machine."""
    try:
        return proc.read_text().strip()
    except OSError:
        import psutil

        return f"boot-{int(psutil.boot_time())}"
