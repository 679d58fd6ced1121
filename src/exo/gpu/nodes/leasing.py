"""The desk where leases are asked for: decide and take as one step, or stand in the line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.execution.lease_store import LeaseStore
from exo.gpu.execution.ledger_book import SETTLE_SECONDS
from exo.gpu.nodes.awaited_memory import AwaitedMemory, Eyes
from exo.gpu.nodes.foresight import SOONEST, foresight
from exo.gpu.nodes.lease_report import measured, of_the_living, release_by_force
from exo.gpu.nodes.overrun import HoldersWatch, OverrunWatch, Seen
from exo.gpu.nodes.policies import policies_for
from exo.gpu.nodes.transport import Grant
from exo.gpu.scheduling.explanation import refusal_message
from exo.gpu.scheduling.job_queue import Turn, in_order, take_turn
from exo.gpu.scheduling.selector import leases_of, select
from exo.gpu.vocabulary.errors import NotNow
from exo.gpu.vocabulary.lease import Lease, Waiter
from exo.gpu.vocabulary.snapshot import Snapshot

if TYPE_CHECKING:
    from exo.gpu.execution.held import HeldLease, HeldPlace
    from exo.gpu.execution.ledger_book import Book
    from exo.gpu.execution.state_directory import StorePlace
    from exo.gpu.vocabulary.request import Request

# Waiters are woken; whoever was not (a bell of another container, a reading that changed) looks
# again after this long.
POLL_SECONDS = 1.0

# While the memory of a lease that ended is awaited: a driver needs some tenths of a second.
SETTLING_POLL_SECONDS = 0.1

# Behind everybody who waits already and came at the same instant.
_LAST = 2**53


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
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.held: dict[str, HeldLease] = {}
        """The leases that were taken here and not given back yet, by id."""
        self._place = place
        self._eyes = eyes
        self._awaited = AwaitedMemory(eyes)
        self._umbrella = umbrella
        self._clock = clock
        self._environ = os.environ if environ is None else environ
        self._foresee: dict[Request, Callable[[Snapshot], Snapshot]] = {}
        self._store: LeaseStore | None = None
        self._watched: set[str] = set()
        self._holders = HoldersWatch(self._declared, self._measured, self._note)

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
            self._awaited.settle(book)
            return book.leases

    def on_ledger(self) -> tuple[Lease, ...]:
        """All leases that are written down, without a look at devices or at who lives."""
        with self.store.transaction() as book:
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
        self._eyes.look(0.0, None)
        if request.exclusive:
            self._eyes.look_for_others()
        asker = self._asker(request)
        self._look_ahead(request)
        attempt = self._attempt(asker, lasts_seconds)
        while attempt.hopeful and self._clock() < begun + patience and not cancelled():
            time.sleep(SETTLING_POLL_SECONDS)
            self._eyes.look(self._clock(), None)
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
        self._watched.discard(lease_id)
        if held is not None:
            held.release()

    def close(self) -> None:
        """Let go of all leases and close the store; harmless twice."""
        for lease_id in list(self.held):
            self.release(lease_id)
        self._holders.stop()
        if self._store is not None:
            self._store.close()
            self._store = None

    def report(self) -> tuple[Lease, ...]:
        """The live leases with what their processes are seen to hold now, and who is left."""
        return self._measured(tuple(of_the_living(self.store, lease) for lease in self.live()))

    def end(self, name: str, *, force: bool) -> Lease | Waiter:
        """Strike out a lease, or take a waiter out of the line, of this user or for root.

        Raises:
            NoSuchLease: for an id that neither has.
            LeaseKept: for another user's, or, without ``force``, one under which work goes on.

        """
        return release_by_force(self.store, name, force=force)

    def watch(self, lease_ids: Iterable[str], overrun: str) -> OverrunWatch:
        """Looks after the memory of what runs under these leases; see :data:`OVERRUN_WAYS`."""
        lease_ids = tuple(lease_ids)
        self._watched.update(lease_ids)
        leases = () if overrun == "off" else [self.held[lease_id].lease for lease_id in lease_ids]
        return OverrunWatch(leases, self._eyes.driver_list, self._note, kill=overrun == "kill")

    def look_after(self) -> None:
        """Tell the log where what is held here takes more memory than it declared, from now on."""
        self._holders.start()

    def _declared(self) -> tuple[Lease, ...]:
        """The leases to look after: with declared memory, and with no watch of their own."""
        return tuple(
            one.lease
            for one in tuple(self.held.values())
            if one.lease.memory_bytes is not None and one.lease.lease_id not in self._watched
        )

    def _measured(self, leases: tuple[Lease, ...]) -> tuple[Lease, ...]:
        return measured(leases, self._eyes.driver_list)

    def _note(self, lease_id: str, seen: Seen) -> None:
        with self.store.transaction() as book:
            book.note(lease_id, seen.memory_bytes, seen.pids)

    def line(self) -> tuple[tuple[Waiter, Turn], ...]:
        """Everybody who waits, the first one first, each with what it would be told now."""
        self._look()
        with self.store.transaction() as book:
            book.prune()
            self._awaited.settle(book)
            snapshot = self._eyes.assemble(book.leases)
            line, now_seconds = in_order(book.waiters), book.now_seconds
        return tuple((one, take_turn(line, one, snapshot, now_seconds)) for one in line)

    def _look(self) -> None:
        """Read what is old, and what was read before a lease there ended.

        Who works there without a lease is asked for where somebody waits for a whole device.
        """
        self._eyes.look(0.0, None)
        with self.store.transaction() as book:
            unread = self._awaited.unread(book)
            alone = any(waiter.request.exclusive for waiter in book.waiters)
        self._awaited.read(unread)
        if alone:
            self._eyes.look_for_others()

    def _asker(self, request: Request) -> Waiter:
        return Waiter(
            waiter_id="",
            request=request,
            number=_LAST,
            arrived_seconds=self._clock(),
            umbrella=self._umbrella,
            visible=tuple(device.hardware_id for device in self._eyes.devices()),
        )

    def _attempt(
        self, asker: Waiter, lasts_seconds: float | None, place: HeldPlace | None = None
    ) -> Attempt:
        with self.store.transaction() as book:
            unread = self._awaited.unread(book)
            if not unread:
                return self._take(book, asker, lasts_seconds, place)
        self._awaited.read(unread)
        with self.store.transaction() as book:
            return self._take(book, asker, lasts_seconds, place)

    def _take(
        self, book: Book, asker: Waiter, lasts_seconds: float | None, place: HeldPlace | None
    ) -> Attempt:
        """Decide, and write down what was granted, all in one transaction."""
        if place is not None:
            asker = _still_there(book, place)
        self._awaited.settle(book)
        snapshot, turn = self._turn(book, asker, book.leases)
        if not turn.decision.chosen and not turn.decision.never and book.prune():
            self._awaited.settle(book)
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
                self._eyes.look(0.0, None)
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
                    self._eyes.look(self._clock(), None)
        finally:
            place.leave()

    def _turn(self, book: Book, asker: Waiter, leases: tuple[Lease, ...]) -> tuple[Snapshot, Turn]:
        snapshot = self._eyes.assemble(leases)
        foresee = self._foresee.get(asker.request)
        if foresee is not None:
            snapshot = foresee(snapshot)
        policies = policies_for(asker.request)
        if not book.waiters:
            decision = select(snapshot, asker.request, policies=policies, brief=True)
            if not decision.chosen:  # then every reason counts
                decision = select(snapshot, asker.request, policies=policies)
            return snapshot, Turn(decision=decision)
        return snapshot, take_turn(book.waiters, asker, snapshot, book.now_seconds, policies)

    def _look_ahead(self, request: Request) -> None:
        """Read what was learned, before the ledger is held, where the policy goes by it."""
        self._foresee.clear()
        if request.policy == SOONEST:
            self._foresee[request] = foresight(request, self._eyes.devices(), self._environ)

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


def _still_there(book: Book, place: HeldPlace) -> Waiter:
    for waiter in book.waiters:
        if waiter.waiter_id == place.waiter.waiter_id:
            return waiter
    raise NotNow("not now: this request was taken out of the line ('exo-gpu leases release')")


def place_words(waiter: Waiter, turn: Turn) -> str:
    """Where in the line one stands, and for what: a line for people."""
    count = len(turn.ahead)
    ahead = "first in the line" if not count else f"behind {count} in the line"
    return f"waiting, {ahead} (exo-gpu why {waiter.waiter_id}): {refusal_message(turn.decision)}"
