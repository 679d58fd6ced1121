"""The desk where leases are asked for: decide and take as one step, or stand in the line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.lease_store import LeaseStore
from exo.gpu.execution.ledger_book import SETTLE_SECONDS
from exo.gpu.nodes.lease_report import measured, release_by_force
from exo.gpu.nodes.overrun import OverrunWatch, Seen
from exo.gpu.nodes.policies import policies_for
from exo.gpu.nodes.transport import Grant
from exo.gpu.scheduling.explanation import refusal_message
from exo.gpu.scheduling.job_queue import Turn, in_order, take_turn
from exo.gpu.scheduling.selector import leases_of, select
from exo.gpu.scheduling.settling import is_settled
from exo.gpu.vocabulary.errors import NotNow
from exo.gpu.vocabulary.lease import Lease, Waiter
from exo.gpu.vocabulary.snapshot import Snapshot
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from exo.gpu.backend import DeviceProcess
    from exo.gpu.execution.held import HeldLease, HeldPlace
    from exo.gpu.execution.ledger_book import Book
    from exo.gpu.execution.state_directory import StorePlace
    from exo.gpu.vocabulary.request import Request
    from exo.gpu.vocabulary.snapshot import DeviceState

logger = logging.getLogger("exo.gpu.nodes.leasing")

# Waiters are woken; whoever was not (a bell of another container, a reading that changed) looks
# again after this long.
POLL_SECONDS = 1.0

# While the memory of a lease that ended is awaited: a driver needs some tenths of a second.
SETTLING_POLL_SECONDS = 0.1

# Behind everybody who waits already and came at the same instant.
_LAST = 2**53


class Eyes(msgspec.Struct, frozen=True):
    """What the desk sees of its machine, by functions of whoever owns the devices."""

    look: Callable[[float], None]
    """Reads every device whose sample is old, or was begun before that monotonic time."""
    assemble: Callable[[tuple[Lease, ...]], Snapshot]
    """All devices with what was read last, under these leases."""
    seen_since: Callable[[str], float | None]
    """The monotonic time at which the reading of a device's newest sample began."""
    driver_list: Callable[[str], list[DeviceProcess] | None]
    """The processes on the driver's list for a device; None where it gives none."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction's answer."""

    turn: Turn
    held: tuple[HeldLease, ...] = ()
    hopeful: bool = False
    """Nothing but memory that is on its way back stands between the asker and its devices."""


OnWait = Callable[[Waiter, Turn], None]


class LeaseDesk:
    """Takes, queues for and gives back leases in the name of this process."""

    def __init__(
        self,
        place: Callable[[], StorePlace],
        eyes: Eyes,
        umbrella: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.held: dict[str, HeldLease] = {}
        """The leases that were taken here and not given back yet, by id."""
        self._place = place
        self._eyes = eyes
        self._umbrella = umbrella
        self._clock = clock
        self._store: LeaseStore | None = None

    @property
    def store(self) -> LeaseStore:
        """The store of this machine and boot, opened when it is first needed."""
        if self._store is None:
            self._store = LeaseStore(self._place(), order=in_order, clock=self._clock)
        return self._store

    def live(self) -> tuple[Lease, ...]:
        """All leases under which somebody works, or whose memory is still awaited."""
        self._look()
        with self.store.transaction() as book:
            book.prune()
            self._settle(book)
            return book.leases

    def acquire(
        self,
        request: Request,
        *,
        wait_seconds: float | None = None,
        lasts_seconds: float | None = None,
        on_wait: OnWait | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Grant:
        """Decide and take the leases as one step; with ``wait_seconds`` stand in the line so long.

        Without a wait, memory that a lease which has ended is just giving back is waited for
        (a few seconds at most) where it is all that is missing; ``wait_seconds=0`` does not even
        do that. ``on_wait`` hears once of the place in the line. ``cancelled`` is asked between
        looks, a second apart at most, and ends the wait.

        Raises:
            NotNow: when somebody took the place in the line away.
            StoreError: when the store cannot be used.

        """
        begun = self._clock()
        patience = 0.0 if wait_seconds is not None else SETTLE_SECONDS + 2 * SETTLING_POLL_SECONDS
        self._look()
        asker = self._asker(request)
        attempt = self._attempt(asker, lasts_seconds)
        while attempt.hopeful and self._clock() < begun + patience and not cancelled():
            time.sleep(SETTLING_POLL_SECONDS)
            self._eyes.look(self._clock())
            attempt = self._attempt(asker, lasts_seconds)
        if wait_seconds and not attempt.held and not attempt.turn.decision.never:
            attempt = self._stand_in_line(
                asker, begun + wait_seconds, lasts_seconds, on_wait, cancelled
            )
        self.held.update({held.lease.lease_id: held for held in attempt.held})
        return Grant(attempt.turn.decision, tuple(one.lease.lease_id for one in attempt.held))

    def release(self, lease_id: str) -> None:
        """Let go of a lease; harmless twice."""
        held = self.held.pop(lease_id, None)
        if held is not None:
            held.release()

    def close(self) -> None:
        """Let go of all leases and close the store; harmless twice."""
        for lease_id in list(self.held):
            self.release(lease_id)
        if self._store is not None:
            self._store.close()
            self._store = None

    def report(self) -> tuple[Lease, ...]:
        """The live leases with what their processes are seen to hold now."""
        return measured(self.live(), self._eyes.driver_list)

    def end(self, name: str, *, force: bool) -> Lease | Waiter:
        """Strike out a lease, or take a waiter out of the line, of this user or for root.

        Raises:
            NoSuchLease: for an id that neither has.
            LeaseKept: for another user's, or, without ``force``, one under which work goes on.

        """
        return release_by_force(self.store, name, force=force)

    def watch(self, lease_ids: Iterable[str], overrun: str) -> OverrunWatch:
        """Looks after the memory of what runs under these leases; see :data:`OVERRUN_WAYS`."""

        def note(lease_id: str, seen: Seen) -> None:
            with self.store.transaction() as book:
                book.note(lease_id, seen.memory_bytes, seen.pids)

        leases = () if overrun == "off" else [self.held[lease_id].lease for lease_id in lease_ids]
        return OverrunWatch(leases, self._eyes.driver_list, note, kill=overrun == "kill")

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits, the first one first, each with what it would be told now."""
        self._look()
        with self.store.transaction() as book:
            book.prune()
            self._settle(book)
            snapshot = self._eyes.assemble(book.leases)
            line, now_seconds = in_order(book.waiters), book.now_seconds
        return tuple((one, take_turn(line, one, snapshot, now_seconds)) for one in line)

    def _look(self) -> None:
        """Read what is old, and what was read before a lease there ended."""
        self._eyes.look(0.0)
        with self.store.transaction() as book:
            ended = [lease.ended_seconds or 0.0 for lease in book.leases if lease.settling]
        if ended:
            self._eyes.look(max(ended))

    def _asker(self, request: Request) -> Waiter:
        devices = self._eyes.assemble(()).devices
        return Waiter(
            waiter_id="",
            request=request,
            number=_LAST,
            arrived_seconds=self._clock(),
            umbrella=self._umbrella,
            visible=tuple(state.device.hardware_id for state in devices),
        )

    def _attempt(
        self, asker: Waiter, lasts_seconds: float | None, place: HeldPlace | None = None
    ) -> Attempt:
        with self.store.transaction() as book:
            if place is not None:
                asker = _still_there(book, place)
            self._settle(book)
            snapshot, turn = self._turn(book, asker, book.leases)
            if not turn.decision.chosen and not turn.decision.never and book.prune():
                self._settle(book)
                snapshot, turn = self._turn(book, asker, book.leases)
            self._note_head(book, turn)
            held = tuple(
                book.add(lease, lasts_seconds)
                for lease in leases_of(snapshot, turn.decision.chosen, asker.request)
            )
            if held and place is not None:
                book.dequeue(asker.waiter_id)
            return Attempt(turn=turn, held=held, hopeful=not held and self._is_hopeful(book, asker))

    def _stand_in_line(
        self,
        asker: Waiter,
        until_seconds: float,
        lasts_seconds: float | None,
        on_wait: OnWait | None,
        cancelled: Callable[[], bool],
    ) -> Attempt:
        place = self.store.line_up(
            asker.request,
            umbrella=asker.umbrella,
            visible=asker.visible,
            gives_up_seconds=until_seconds,
        )
        try:
            while True:
                self._look()
                attempt = self._attempt(place.waiter, lasts_seconds, place)
                over = self._clock() >= until_seconds or cancelled()
                if attempt.held or attempt.turn.decision.never or over:
                    return attempt
                if on_wait is not None:
                    on_wait(place.waiter, attempt.turn)
                    on_wait = None
                poll = SETTLING_POLL_SECONDS if attempt.hopeful else POLL_SECONDS
                place.wait(min(poll, max(0.0, until_seconds - self._clock())))
                if attempt.hopeful:
                    self._eyes.look(self._clock())
        finally:
            place.leave()

    def _turn(self, book: Book, asker: Waiter, leases: tuple[Lease, ...]) -> tuple[Snapshot, Turn]:
        snapshot = self._eyes.assemble(leases)
        policies = policies_for(asker.request)
        if not book.waiters:
            return snapshot, Turn(decision=select(snapshot, asker.request, policies=policies))
        return snapshot, take_turn(book.waiters, asker, snapshot, book.now_seconds, policies)

    def _is_hopeful(self, book: Book, asker: Waiter) -> bool:
        working = tuple(lease for lease in book.leases if not lease.settling)
        if len(working) == len(book.leases):
            return False
        _, turn = self._turn(book, asker, working)
        return bool(turn.decision.chosen)

    def _note_head(self, book: Book, turn: Turn) -> None:
        """Keep what is reserved for the first in the line where all can see it."""
        head = turn.head
        if head is None:
            return
        for waiter in book.waiters:
            if waiter.waiter_id == head.waiter_id and waiter.reserved != head.reserved:
                book.keep_place(head)

    def _settle(self, book: Book) -> None:
        """Strike out the ended leases whose memory is back, or has been awaited long enough."""
        awaited = [lease for lease in book.leases if lease.settling]
        if not awaited:
            return
        states = {
            state.device.hardware_id: state for state in self._eyes.assemble(book.leases).devices
        }
        for lease in awaited:
            state = states.get(lease.hardware_id)
            ended = lease.ended_seconds or 0.0
            if state is None:
                continue  # not visible here: others will see, or the clock decides
            if self._is_back(lease, state, ended):
                book.drop(lease.lease_id)
            elif book.now_seconds >= ended + SETTLE_SECONDS:
                _tell_of_lost_memory(lease, state)
                book.drop(lease.lease_id)

    def _is_back(self, lease: Lease, state: DeviceState, ended_seconds: float) -> bool:
        if state.sample is None or state.sample.memory_used_bytes is None:
            return True
        seen = self._eyes.seen_since(state.device.device_id)
        if seen is None or seen <= ended_seconds:
            return False
        listed = self._eyes.driver_list(state.device.device_id) if lease.seen_pids else None
        pids = None if listed is None else frozenset(process.pid for process in listed)
        return is_settled(lease, state, pids)


def _still_there(book: Book, place: HeldPlace) -> Waiter:
    for waiter in book.waiters:
        if waiter.waiter_id == place.waiter.waiter_id:
            return waiter
    raise NotNow("not now: this request was taken out of the line ('exo-gpu leases release')")


def _tell_of_lost_memory(lease: Lease, state: DeviceState) -> None:
    used = None if state.sample is None else state.sample.memory_used_bytes
    logger.warning(
        "%s: a lease of %s ended %g s ago, and the memory is not back: %s in use, which counts as "
        "somebody else's from now on",
        lease.device_id,
        lease.holder or lease.command or "a process that is gone",
        SETTLE_SECONDS,
        format_size(used),
    )


def place_words(waiter: Waiter, turn: Turn) -> str:
    """Where in the line one stands, and for what: a line for people."""
    count = len(turn.ahead)
    ahead = "first in the line" if not count else f"behind {count} in the line"
    return f"waiting, {ahead} (exo-gpu why {waiter.waiter_id}): {refusal_message(turn.decision)}"
