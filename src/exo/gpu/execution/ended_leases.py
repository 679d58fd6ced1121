"""Word of leases that have ended, left in a folder for whoever opens the ledger next."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_NANO = 1_000_000_000


class EndedLeases:
    """A name for each lease that its holder has given back.

    Anybody may leave or remove one, so it is only a hint to look at that lease: whether it is
    over says its lock.
    """

    def __init__(self, folder: Path) -> None:
        """Keep the folder open.

        Raises:
            OSError: when it cannot be opened.

        """
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the folder; harmless twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def leave_word(self, lease_id: str, seconds: float) -> None:
        """The lease ended at this time of the monotonic clock."""
        with suppress(OSError):
            os.symlink("-", f"{lease_id} {round(seconds * _NANO)}", dir_fd=self._descriptor)

    def words(self) -> list[tuple[str, str, float]]:
        """(name of the word, lease id, monotonic seconds) of each that was left."""
        found: list[tuple[str, str, float]] = []
        for name in os.listdir(self._descriptor):  # noqa: PTH208 - by descriptor
            lease_id, _, nanoseconds = name.partition(" ")
            found.append(
                (name, lease_id, int(nanoseconds) / _NANO if nanoseconds.isdecimal() else 0)
            )
        return found

    def remove(self, name: str) -> None:
        """The word was heard."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)
