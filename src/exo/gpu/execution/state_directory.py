"""Where processes of this machine and boot meet: the directory of the lease store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.file_systems import NETWORK_FILE_SYSTEMS, file_system
from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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


def prepare(place: StorePlace, name: str, furnish: Callable[[Path], None]) -> Path:
    """The directory of this name there, made where it is missing and filled by ``furnish``.

    It appears whole or not at all. Whoever makes it owns all that is in it from the start: in a
    sticky directory Linux refuses to open other people's files for creation
    (``fs.protected_regular``), as SQLite opens its journal, unless they are the directory's
    owner's.

    Raises:
        StoreError: naming the directory, when it cannot be made or lies on a network file
            system.

    """
    try:
        if not place.path.is_dir():
            place.path.mkdir(parents=True, exist_ok=True)
            # Everybody's, and nobody removes another's files: as /tmp itself.
            place.path.chmod(0o1777)
        _refuse_network(place.path)
        home = place.path / name
        if not home.is_dir():
            _make(home, furnish)
    except OSError as error:
        advice = "set EXO_GPU_STATE to a local directory that you may write"
        raise StoreError(f"nothing can be kept at {place.path}: {error}; {advice}") from error
    return home


def _make(home: Path, furnish: Callable[[Path], None]) -> None:
    import shutil
    import tempfile

    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=home.parent))
    try:
        furnish(fresh)
        fresh.chmod(0o1777)
        fresh.rename(home)
    except OSError:
        # Somebody else's was there first, unless it is not.
        if not home.is_dir():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _refuse_network(path: Path) -> None:
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{path} is on {kind}, a network file system, where locks cannot be trusted; "
            "set EXO_GPU_STATE to a local directory"
        )


def boot_id(proc: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """A name for this boot of this machine."""
    try:
        return proc.read_text().strip()
    except OSError:
        import psutil

        return f"boot-{int(psutil.boot_time())}"
