"""Turns of processes at one file: a kernel lock that is waited for, but never for long."""

from __future__ import annotations

import fcntl
import logging
import time

logger = logging.getLogger("exo.gpu.file_lock")

# Another process holds the lock for the time of one write, well under this.
LOCK_SECONDS = 1.0
_PAUSE_SECONDS = 0.005


def wait_for_lock(descriptor: int, *, what: str) -> None:
    """Lock an open file or folder until it is closed.

    On a file system without locks, or in vain, the caller goes on without: ``what`` is then
    replaced whole all the same, and only a change of another process may be lost.
    """
    ends = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < ends:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            logger.debug("no lock for %s: %s", what, error)
            return
        else:
            return
    logger.info("another process kept the lock of %s for %g s", what, LOCK_SECONDS)
