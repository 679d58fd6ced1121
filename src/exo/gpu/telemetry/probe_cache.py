"""What probes found, kept on disk: by identity, and only while the driver is the same."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from exo.gpu.file_lock import wait_for_lock
from exo.gpu.vocabulary.probe import PairResult, ProbeResult

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from exo.gpu.vocabulary.device import GPUDevice

Result = TypeVar("Result", ProbeResult, PairResult)
Key = TypeVar("Key")

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


def pairs_path(environ: Mapping[str, str]) -> Path:
    """The file of what was measured between devices, beside that of the devices."""
    path = cache_path(environ)
    return path.with_name(f"{path.stem}-pairs{path.suffix}")


class _Cache(Generic[Result, Key]):
    """Results of one user's probes in one file.

    Several processes may use it: writers take turns, and readers see a whole file or the one
    before it. A file that is none of ours counts as empty, is set aside by the next writer, and is
    told in the log.
    """

    def __init__(
        self, path: Path, decoder: msgspec.json.Decoder[list[Result]], key: Callable[[Result], Key]
    ) -> None:
        self._path = path
        self._decoder = decoder
        self._key = key
        self._known: dict[Key, Result] = {}
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

    def keep(self, results: Iterable[Result]) -> None:
        """Add results to the file, in the place of older ones of the same devices.

        Raises:
            OSError: when the file cannot be written.

        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(self._path.with_name(f"{self._path.name}.lock")):
            known = self._read(set_aside=True)
            known.update((self._key(result), result) for result in results)
            draft = self._path.with_name(f"{self._path.name}.{os.getpid()}-{threading.get_ident()}")
            draft.write_bytes(msgspec.json.encode(list(known.values())))
            draft.replace(self._path)

    def _read(self, *, set_aside: bool = False) -> dict[Key, Result]:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            logger.warning("measured speeds are not used: %s", error)
            return {}
        try:
            results = self._decoder.decode(text)
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("%s is damaged, so measured speeds are not used: %s", self._path, error)
            if set_aside:
                self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
            return {}
        return {self._key(result): result for result in results}


class ProbeCache(_Cache[ProbeResult, str]):
    """What was measured on devices, by hardware id."""

    def __init__(self, path: Path) -> None:
        decoder = msgspec.json.Decoder(list[ProbeResult])
        super().__init__(path, decoder, lambda result: result.hardware_id)

    def find(self, device: GPUDevice) -> ProbeResult | None:
        """What was measured on a device under its present driver, as of the last refresh."""
        result = self._known.get(device.hardware_id)
        return result if result and result.driver_version == device.driver_version else None


class PairCache(_Cache[PairResult, tuple[str, str]]):
    """What was measured between devices, by both hardware ids, source first."""

    def __init__(self, path: Path) -> None:
        decoder = msgspec.json.Decoder(list[PairResult])
        super().__init__(
            path, decoder, lambda result: (result.source_hardware_id, result.target_hardware_id)
        )

    def find(self, source: GPUDevice, target: GPUDevice) -> PairResult | None:
        """What was measured under both present drivers, as of the last refresh."""
        result = self._known.get((source.hardware_id, target.hardware_id))
        if result is None:
            return None
        then = result.source_driver_version, result.target_driver_version
        return result if then == (source.driver_version, target.driver_version) else None


@contextlib.contextmanager
def _turn(lock: Path) -> Generator[None]:
    """Wait for the other writers; the lock ends with this process, however it ends."""
    with lock.open("a") as file:
        wait_for_lock(file.fileno(), what=str(lock))
        yield
