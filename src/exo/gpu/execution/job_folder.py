"""Where journals lie: one folder for each user, with the newest jobs in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.execution.journal import decode_record, is_live
from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import JobBegun, JobEnded

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER_VARIABLE = "EXO_GPU_JOBS"
SUFFIX = ".journal"

# Beyond any of these the oldest go, but none whose job is running.
KEPT_JOBS = 500
KEPT_SECONDS = 30 * 86400.0
KEPT_BYTES = 2**30

# The first record holds a template, the last one a figure for each device.
_ENDS_READ_BYTES = 2**18


def jobs_folder(environ: Mapping[str, str]) -> Path:
    """The folder that ``EXO_GPU_JOBS`` names, else one in the user's state folder."""
    named = environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "linux":  # as platformdirs has it, without the time to load it
        base = environ.get("XDG_STATE_HOME", "")
        folder = Path(base) if base.strip() else Path("~/.local/state").expanduser()
        return folder / "exo-gpu" / "jobs"
    import platformdirs

    return platformdirs.user_state_path("exo-gpu", appauthor=False) / "jobs"


def new_job_id(now: float) -> str:
    """A name that sorts by time: ``20260301-140502-3f9a``."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(2)}"


def enrol(folder: Path, job_id: str, elsewhere: Path | None) -> Path:
    """The path of a new job's journal; one that lies ``elsewhere`` is linked from the folder.

    Raises:
        JournalError: when the folder cannot be made or written.

    """
    path = folder / f"{job_id}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if elsewhere is not None:
            path.symlink_to(elsewhere.absolute())
    except OSError as error:
        raise JournalError(f"no journal can be kept in {folder}: {error.strerror}") from error
    prune(folder, time.time())
    return path if elsewhere is None else elsewhere


def journals(folder: Path) -> list[Path]:
    """The journals of a folder, the newest job first; none where there is no folder."""
    try:
        found = [path for path in folder.iterdir() if path.name.endswith(SUFFIX)]
    except OSError:
        return []
    return sorted(found, reverse=True)


def prune(folder: Path, now: float) -> None:
    """Remove the journals of old jobs, and links that lead nowhere."""
    total_bytes = 0
    for place, path in enumerate(journals(folder)):
        try:
            facts = path.stat()
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                path.unlink()
            continue
        except OSError:
            continue
        total_bytes += 0 if path.is_symlink() else facts.st_size
        too_old = now - facts.st_mtime > KEPT_SECONDS
        if (place >= KEPT_JOBS or too_old or total_bytes > KEPT_BYTES) and not _in_use(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _in_use(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_live(descriptor)
    finally:
        os.close(descriptor)


class Ends(NamedTuple):
    """The two ends of a journal."""

    begun: JobBegun
    ended: JobEnded | None
    """None unless the last record says that the job came to its end."""
    live: bool


def read_ends(path: Path) -> Ends:
    """The first record and, where it is one, the end; as dear for a long journal as for a short.

    Raises:
        JournalError: when it cannot be read, or does not begin as a journal.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JournalError(f"the journal {path} cannot be read: {error.strerror}") from error
    try:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, _ENDS_READ_BYTES, 0)
        tail = os.pread(descriptor, _ENDS_READ_BYTES, max(0, size - _ENDS_READ_BYTES))
        live = is_live(descriptor)
    finally:
        os.close(descriptor)
    first = decode_record(head.partition(b"\n")[0])
    if not isinstance(first, JobBegun):
        raise JournalError(f"{path} is no journal of a job, or its first line is damaged")
    whole, _, rest = tail.rpartition(b"\n")
    last = None if rest else decode_record(whole.rpartition(b"\n")[2])
    return Ends(first, last if isinstance(last, JobEnded) else None, live)
