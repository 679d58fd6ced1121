"""Work that takes more memory than it declared: seen once a second, told, and ended if asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    import psutil

    from exo.gpu.backend import DeviceProcess

logger = logging.getLogger("exo.gpu.nodes.overrun")

OVERRUN_WAYS = ("warn", "kill", "off")

# Drivers are asked so often while a command runs: dear enough not to be done more.
LOOK_SECONDS = 1.0

# What does not end on SIGTERM by then is killed.
KILL_SECONDS = 5.0
KILL_POLL_SECONDS = 0.05


class Seen(msgspec.Struct, frozen=True):
    """What the processes of a tree hold on a device; None where the driver hides how much."""

    memory_bytes: int | None
    pids: tuple[int, ...]


def seen_under(root_pid: int, listed: Iterable[DeviceProcess]) -> Seen:
    """The driver's list, narrowed to a process and its descendants.

    In a container the driver's ids are the host's, so that nothing is found, which reads as an
    empty tree.
    """
    tree = process_tree(root_pid)
    ours = [process for process in listed if process.pid in tree]
    sizes = [process.memory_bytes for process in ours if process.memory_bytes is not None]
    total = sum(sizes) if sizes or not ours else None
    return Seen(total, tuple(sorted(process.pid for process in ours)))


def process_tree(root_pid: int) -> frozenset[int]:
    """A process and all its descendants that are alive; empty where it is gone."""
    import psutil

    try:
        root = psutil.Process(root_pid)
        return frozenset({root_pid, *(child.pid for child in root.children(recursive=True))})
    except psutil.Error:
        return frozenset()


def end_tree(root_pid: int) -> None:
    """End a process and all its descendants: asked first, killed after a while."""
    import psutil

    try:
        root = psutil.Process(root_pid)
        doomed = [root, *root.children(recursive=True)]
    except psutil.Error:
        return
    for process in doomed:
        _quietly(process.terminate)
    # psutil's own wait would take the command's status away from whoever started it.
    ends = time.monotonic() + KILL_SECONDS
    while any(map(_works, doomed)) and time.monotonic() < ends:
        time.sleep(KILL_POLL_SECONDS)
    for process in doomed:
        _quietly(process.kill)


def _works(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _quietly(act: Callable[[], None]) -> None:
    import psutil

    try:
        act()
    except psutil.Error as error:
        logger.debug("already gone: %s", error)


class OverrunWatch:
    """Looks after a command's memory on a daemon thread, for as long as the block lasts."""

    def __init__(
        self,
        leases: Iterable[Lease],
        driver_list: Callable[[str], list[DeviceProcess] | None],
        note: Callable[[str, Seen], None],
        *,
        kill: bool,
        every_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._leases = tuple(leases)
        self._driver_list = driver_list
        self._note = note
        self._kill = kill
        self._every_seconds = every_seconds
        self._noted: dict[str, Seen] = {}
        self._told: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> OverrunWatch:
        """Itself; it looks from :meth:`start` on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(self._every_seconds)

    def start(self, root_pid: int) -> None:
        """Look at this process and its descendants from now on."""
        self._thread = threading.Thread(
            target=self._run, args=(root_pid,), name="exo-gpu-overrun", daemon=True
        )
        self._thread.start()

    def _run(self, root_pid: int) -> None:
        while not self._done.wait(self._every_seconds):
            for lease in self._leases:
                listed = self._driver_list(lease.device_id)
                if listed is not None:
                    self._judge(lease, seen_under(root_pid, listed), root_pid)

    def _judge(self, lease: Lease, seen: Seen, root_pid: int) -> None:
        if seen != self._noted.get(lease.lease_id) and not self._done.is_set():
            self._noted[lease.lease_id] = seen
            try:
                self._note(lease.lease_id, seen)
            except StoreError as error:
                logger.debug("not written down: %s", error)
        measured = msgspec.structs.replace(lease, seen_bytes=seen.memory_bytes, seen_pids=seen.pids)
        if not measured.overrun_bytes or lease.lease_id in self._told:
            return
        self._told.add(lease.lease_id)
        logger.warning("%s%s", overrun_words(measured), "; it is ended" if self._kill else "")
        if self._kill:
            end_tree(root_pid)


def overrun_words(lease: Lease) -> str:
    """Who uses more than was declared, in one line."""
    who = lease.holder or lease.command or f"process {lease.pid}"
    seen, declared = format_size(lease.seen_bytes), format_size(lease.memory_bytes)
    return f"{lease.device_id}: {who} holds {seen}, and declared {declared}"
