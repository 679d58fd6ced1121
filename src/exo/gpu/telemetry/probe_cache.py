"""What probes found, kept on disk: by identity, and only while the driver is the same."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.probe import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from exo.gpu.vocabulary.device import GPUDevice

logger = logging.getLogger("exo.gpu.telemetry.probe_cache")

PATH_VARIABLE = "EXO_GPU_PROBES"
"""Path of the file in which measured speeds are kept."""


def cache_path(environ: Mapping[str, str]) -> Path:
    """The file: the one that ``EXO_GPU_PROBES`` names, else one in the user's cache folder."""
    named = environ.get(PATH_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "linux":  # as platformdirs has it, without the time to load it
        base = environ.get("XDG_CACHE_HOME", "")
        folder = Path(base) if base.strip() else Path("~/.cache").expanduser()
        return folder / "exo-gpu" / "probes.json"
    import platformdirs

    return platformdirs.user_cache_path("exo-gpu", appauthor=False) / "probes.json"


class ProbeCache:
    """The results of one user's probes in one file, by hardware id.

    Several processes may use it: writers take turns, and readers see a whole file or the one
    before it. A file that is none of ours counts as empty, is set aside by the next writer, and is
    told in the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, ProbeResult] = {}
        self._written_at: int | None = None

    def refresh(self) -> None:
        """Read the file where it is another one than before; costs a look at its time."""
        try:
            written_at = self._path.stat().st_mtime_ns
        except OSError:
            written_at = None
        if written_at != self._written_at:
            self._known = self._read()
            self._written_at = written_at

    def find(self, device: GPUDevice) -> ProbeResult | None:
        """What was measured on a device under its present driver, as of the last refresh."""
        result = self._known.get(device.hardware_id)
        return result if result and result.driver_version == device.driver_version else None

    def keep(self, results: Iterable[ProbeResult]) -> None:
        """Add results to the file, in the place of older ones of the same devices.

        Raises:
            OSError: when the file cannot be written.

        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(self._path.with_name(f"{self._path.name}.lock")):
            known = self._read(set_aside=True)
            known.update((result.hardware_id, result) for result in results)
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(list(known.values())))
            draft.replace(self._path)

    def _read(self, *, set_aside: bool = False) -> dict[str, ProbeResult]:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            logger.warning("measured speeds are not used: %s", error)
            return {}
        try:
            results = msgspec.json.decode(text, type=list[ProbeResult])
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("%s is damaged, so measured speeds are not used: %s", self._path, error)
            if set_aside:
                self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
            return {}
        return {result.hardware_id: result for result in results}


@contextlib.contextmanager
def _turn(lock: Path) -> Generator[None]:
    """Wait for the other writers; the lock ends with this process, however it ends."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
