"""Who still lives: a file each, which every process that works under it has open and locked."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from exo.gpu.vocabulary.errors import StoreError


class LockFolder:
    """The lock files of leases and waiters, by id.

    The kernel frees a lock (``flock``) when the last process that inherited the open file has
    ended: it does not matter which, or how, or in which container or user account.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder open, so that no path is looked up again.

        Raises:
            OSError: when it cannot be opened.

        """
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the folder; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def lock(self, name: str) -> int:
        """Make a file and lock it; the descriptor is the caller's, and closed at its exec.

        Raises:
            StoreError: naming the file.

        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, 0o666, dir_fd=self._descriptor)
        except OSError as error:
            raise StoreError(f"{self._folder / name} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(descriptor, 0o666)  # whatever the umask: other users have to look at it
        except OSError as error:
            os.close(descriptor)
            self.remove(name)
            raise StoreError(f"{self._folder / name} cannot be locked: {error}") from error
        return descriptor

    def is_held(self, name: str) -> bool:
        """Whether a process has the file locked."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"{self._folder / name} cannot be read: {error.strerror}") from error
        try:
            # Holders lock exclusively; those who only look share, so that two never see each other.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remove(self, name: str) -> None:
        """Delete a file; another user's in a sticky folder stays, empty, until the boot."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)

    def names(self) -> list[str]:
        """All files that are there."""
        with os.scandir(self._descriptor) as entries:
            return [entry.name for entry in entries]

    def owner(self, name: str) -> int | None:
        """The user id of whoever made the file, or None where there is none."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_uid
        except OSError:
            return None

    def pids(self, name: str, proc: Path = Path("/proc")) -> tuple[int, ...]:
        """The processes that have the file open, as far as this user may look (``lsof``)."""
        try:
            inode = os.stat(name, dir_fd=self._descriptor)
        except OSError:
            return ()
        found = (
            int(entry.name)
            for entry in (proc.iterdir() if proc.is_dir() else ())
            if entry.name.isdigit() and _has_open(entry / "fd", inode)
        )
        return tuple(sorted(found))


def _has_open(folder: Path, inode: os.stat_result) -> bool:
    try:
        for entry in folder.iterdir():
            with suppress(OSError):
                status = entry.stat()
                if (status.st_dev, status.st_ino) == (inode.st_dev, inode.st_ino):
                    return True
    except OSError:
        return False  # gone meanwhile, or another user's
    return False
