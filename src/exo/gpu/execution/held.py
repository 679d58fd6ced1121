"""What a process holds of the ledger: a lease, or a place in the line, each by a locked file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exo.gpu.execution.bells import Bell
    from exo.gpu.vocabulary.lease import Lease, Waiter


class HeldLease:
    """A lease that this process holds through an open, locked file.

    Hand :attr:`lock_fd` to every process started under the lease (``pass_fds``): the kernel keeps
    the lock until the last of them has ended, whatever becomes of this one.
    """

    def __init__(self, lease: Lease, lock_fd: int, on_release: Callable[[str], None]) -> None:
        self.lease = lease
        self.lock_fd = lock_fd
        self._on_release = on_release

    def release(self) -> None:
        """Let go; harmless twice. The lease ends now, or with the last process under it."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1
            self._on_release(self.lease.lease_id)


class HeldPlace:
    """A place in the line, held through an open, locked file as a lease is."""

    def __init__(
        self, waiter: Waiter, lock_fd: int, bell: Bell, on_leave: Callable[[str], None]
    ) -> None:
        self.waiter = waiter
        self._lock_fd = lock_fd
        self._bell = bell
        self._on_leave = on_leave

    def wait(self, seconds: float) -> bool:
        """Sleep until something was given back, at most so long; whether it was."""
        return self._bell.wait(seconds)

    def leave(self) -> None:
        """Give the place up; harmless twice, and where it was taken away meanwhile."""
        if self._lock_fd >= 0:
            self._bell.close()
            os.close(self._lock_fd)
            self._lock_fd = -1
            self._on_leave(self.waiter.waiter_id)
