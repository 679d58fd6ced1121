"""Work that takes more memory than it declared: seen once a second, told, and ended if asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.process_tree import end_tree, process_tree
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from exo.gpu.backend import DeviceProcess

logger = logging.getLogger("exo.gpu.nodes.overrun")

OVERRUN_WAYS = ("warn", "kill", "off")

# Drivers are asked so often while a command runs: dear enough not to be done more.
LOOK_SECONDS = 1.0


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
    return seen_among([process for process in listed if process.pid in tree])


def seen_among(ours: Sequence[DeviceProcess]) -> Seen:
    """What these processes hold together."""
    sizes = [process.memory_bytes for process in ours if process.memory_bytes is not None]
    total = sum(sizes) if sizes or not ours else None
    return Seen(total, tuple(sorted(process.pid for process in ours)))


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
        self.peak_bytes: dict[str, int] = {}
        """By device id, the most that the driver counted for the command's processes so far."""
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
                    seen = seen_under(root_pid, listed)
                    self._keep_peak(lease.device_id, seen)
                    self._judge(lease, seen, root_pid)

    def _keep_peak(self, device_id: str, seen: Seen) -> None:
        if seen.pids and seen.memory_bytes is not None:
            before = self.peak_bytes.get(device_id, 0)
            self.peak_bytes[device_id] = max(before, seen.memory_bytes)

    def _judge(self, lease: Lease, seen: Seen, root_pid: int) -> None:
        if seen != self._noted.get(lease.lease_id) and not self._done.is_set():
            self._noted[lease.lease_id] = seen
            _write_down(self._note, lease.lease_id, seen)
        measured = msgspec.structs.replace(lease, seen_bytes=seen.memory_bytes, seen_pids=seen.pids)
        if not measured.overrun_bytes or lease.lease_id in self._told:
            return
        self._told.add(lease.lease_id)
        logger.warning("%s%s", overrun_words(measured), "; it is ended" if self._kill else "")
        if self._kill:
            end_tree(root_pid)


class HoldersWatch:
    """Looks after the memory of what this process holds, and tells the log of an overrun once.

    For work whose end is not ours to decide: workers, and programs that hold a lease themselves.
    ``held`` are the leases to look after; ``measure`` says what is seen of them now. It looks on a
    daemon thread, which ends with the last lease.
    """

    def __init__(
        self,
        held: Callable[[], tuple[Lease, ...]],
        measure: Callable[[tuple[Lease, ...]], tuple[Lease, ...]],
        note: Callable[[str, Seen], None],
        *,
        every_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._held = held
        self._measure = measure
        self._note = note
        self._every_seconds = every_seconds
        self._noted: dict[str, Seen] = {}
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._at_work = False
        self._done = threading.Event()

    def start(self) -> None:
        """Look from now on, where there is a lease to look after; harmless twice."""
        with self._lock:
            if self._at_work or not self._held():
                return
            self._at_work = True
        threading.Thread(target=self._run, name="exo-gpu-overrun", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()

    def look(self) -> bool:
        """Look once; False where nothing is held any more, and nobody looks from then on."""
        with self._lock:
            held = self._held()
            self._at_work = bool(held)
        ids = {lease.lease_id for lease in held}
        self._told &= ids
        self._noted = {name: seen for name, seen in self._noted.items() if name in ids}
        for lease in self._measure(held):
            seen = Seen(lease.seen_bytes, lease.seen_pids)
            if seen != self._noted.get(lease.lease_id, Seen(None, ())):
                self._noted[lease.lease_id] = seen
                _write_down(self._note, lease.lease_id, seen)
            if lease.overrun_bytes and lease.lease_id not in self._told:
                self._told.add(lease.lease_id)
                logger.warning("%s", overrun_words(lease))
        return self._at_work

    def _run(self) -> None:
        while not self._done.wait(self._every_seconds) and self.look():
            pass


def _write_down(note: Callable[[str, Seen], None], lease_id: str, seen: Seen) -> None:
    try:
        note(lease_id, seen)
    except StoreError as error:
        logger.debug("not written down: %s", error)


def overrun_words(lease: Lease) -> str:
    """Who uses more than was declared, in one line."""
    who = lease.holder or lease.command or f"process {lease.pid}"
    seen, declared = format_size(lease.seen_bytes), format_size(lease.memory_bytes)
    return f"{lease.device_id}: {who} holds {seen}, and declared {declared}"
