"""Who works on a device under nobody's lease, as far as its driver and the system tell."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.process import ProcessList, RunningProcess

# A list of this age is not asked for again; an older one says nothing about now.
REUSE_SECONDS = 1.0
STALE_SECONDS = 5.0

# Start times are counted in ticks and leases by the wall clock: a holder that took its lease at
# once may seem to have started a little after it.
_CLOCKS_APART_SECONDS = 1.0


class ForeignProcesses:
    """Looks at the processes on the devices when told to, and tells the strangers among them.

    ``ignored`` are names of programs that do not count. This process and what descends from it are
    no strangers to it either.
    """

    def __init__(
        self,
        ask: Callable[[], tuple[ProcessList, ...]],
        ignored: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._ignored = frozenset(ignored)
        self._clock = clock
        self._lists: dict[str, ProcessList] = {}
        self._asked_at: float | None = None

    def look(self) -> None:
        """Ask every driver, unless one was asked just now; takes as long as the asking may."""
        if self._asked_at is None or self._clock() - self._asked_at > REUSE_SECONDS:
            lists = self._ask()
            self._asked_at = self._clock()
            self._lists = {one.device_id: one for one in lists}

    def of(self, device_id: str, leases: Iterable[Lease]) -> tuple[tuple[RunningProcess, ...], str]:
        """The strangers on a device that has these leases, and why there may be more.

        Both are empty where nobody looked lately.
        """
        told = self._lists.get(device_id)
        if told is None or self._asked_at is None:
            return (), ""
        if self._clock() - self._asked_at > STALE_SECONDS:
            return (), ""
        live = tuple(leases)
        strangers = [one for one in told.processes if self._counts(one, live)]
        hidden = [f"process {one.pid}: {one.reason}" for one in strangers if one.name is None]
        known = tuple(one for one in strangers if one.name is not None and _is_there(one))
        return known, "; ".join(filter(None, (told.reason, *hidden)))

    def _counts(self, process: RunningProcess, leases: tuple[Lease, ...]) -> bool:
        if process.name in self._ignored or lease_over(process, leases) is not None:
            return False
        own = os.getpid()
        return process.pid != own and all(pid != own for pid, _ in process.ancestry)


def lease_over(process: RunningProcess, leases: Iterable[Lease]) -> Lease | None:
    """The lease that a process works under: the one it names, else of its nearest ancestor."""
    live = {lease.lease_id: lease for lease in leases}
    for lease_id in reversed(process.lease_ids):  # the innermost comes last
        if lease_id in live:
            return live[lease_id]
    for pid, started_at in process.ancestry:
        for lease in live.values():
            # A process that started after the lease was taken has a number that was used again.
            if lease.pid == pid and started_at <= lease.taken_at + _CLOCKS_APART_SECONDS:
                return lease
    return None


def _is_there(process: RunningProcess) -> bool:
    """Whether it still runs: what ended since the driver was asked works there no more."""
    import psutil

    return psutil.pid_exists(process.pid)
