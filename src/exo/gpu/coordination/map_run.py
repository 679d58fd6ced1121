"""One call of map: items from its source to the slots, results back to whoever reads them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from exo.gpu.coordination.items import Function, Job
from exo.gpu.execution.packing import pack_all
from exo.gpu.execution.payloads import dump_parcel, error_of
from exo.gpu.vocabulary.errors import NotTransferable
from exo.gpu.vocabulary.job import Ending, Outcome
from exo.gpu.vocabulary.parcel import Batch, Parcel

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.coordination.map_items import Items
    from exo.gpu.execution.successes import Successes

# Pulled from an iterator and not read yet, where the caller names no bound: so many items of
# which nobody need feel anything, and so many bytes with their results.
WINDOW_ITEMS = 1024
WINDOW_BYTES = 256 * 2**20

# What is sent to a slot at once stays in memory twice until it has ended.
SPAN_BYTES = 32 * 2**20


class Ended(msgspec.Struct, frozen=True):
    """Items that ended together: in a row of results, or one alone with its error."""

    run: MapRun
    first: int
    """Number of the first item in the map."""
    count: int
    batch: Batch | None
    error: BaseException | None = None
    lane: tuple[int, str] | None = None
    """(slot number, device id)."""
    successes: Successes | None = None
    """The times of a row."""
    place: int = 0
    """Of the first item in ``successes``."""
    outcome: Outcome | None = None
    """Of one that was sent alone."""
    skipped: bool = False
    """They were not run: a journal says that they are done."""


class Cut(NamedTuple):
    """Items that were taken to be sent: their numbers in the map, and what they are."""

    places: Sequence[int]
    values: Sequence[Any]
    batch: Batch


class Mailbox:
    """Where one or more runs leave what has ended for whoever reads it."""

    def __init__(self) -> None:
        self.news = threading.Condition()
        self.ended: deque[Ended] = deque()
        """What was not fetched by the reader yet."""
        self.on_news: Callable[[], None] | None = None
        """Called, from any thread, once after something has come in."""

    def tell(self) -> None:
        """Wake the reader."""
        with self.news:
            self.news.notify_all()
            call, self.on_news = self.on_news, None
        if call is not None:
            call()

    def wait(self, is_wanted: Callable[[], bool], deadline: float | None) -> None:
        """Until something has come in, or the reader is wanted otherwise.

        Raises:
            TimeoutError: when the deadline, on the monotonic clock, was before that.

        """
        with self.news:
            if self.ended or is_wanted():
                return
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("the results did not come within the timeout")
            self.news.wait(left)


class MapRun:
    """The items of one map on their way; the dispatcher cuts spans from it as slots come free.

    A source that runs the caller's code is read only in the caller's thread: at the call, and
    whenever results are waited for. Then no more than ``buffersize`` items, or what fits the
    window, are on their way or wait to be read.
    """

    def __init__(
        self,
        function: Function,
        items: Items,
        *,
        is_single: bool,
        wake: Callable[[], None],
        mailbox: Mailbox,
        lanes: int = 1,
        chunk: int | None = None,
        buffersize: int | None = None,
        device_id: str | None = None,
        deadline_seconds: float | None = None,
        first: int = 0,
    ) -> None:
        """``first`` is the number of the first item, for several runs that are read as one."""
        self.function = function
        self.is_single = is_single
        self.chunk = chunk
        self.device_id = device_id
        self.deadline_seconds = deadline_seconds
        self._items = items
        self._wake = wake
        self._lanes = lanes
        self._buffersize = buffersize
        self._first = first
        self._pulled = self._read = 0
        self._ready: deque[Any] = deque()
        self._returned: deque[tuple[int, Any]] = deque()
        self._mailbox = mailbox
        self._news = mailbox.news
        self._sizes: dict[int, int] = {}
        self._bytes = self._measured = 0
        self._hungry = False
        self._asked = False
        self._dropped = False
        self._unended = 0  # of those that were cut
        self.broken: BaseException | None = None
        """Why the items that have not ended never will."""

    # For the dispatcher.

    @property
    def rest(self) -> int:
        """How many items can still be cut, as far as anybody knows."""
        return len(self._returned) + len(self._ready) + self._items.rest

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left to cut, now and later."""
        return self._dropped or (self.rest == 0)

    @property
    def waits_for_reader(self) -> bool:
        """Whether more can be cut only after its reader has asked for results."""
        return self._hungry and not self.is_spent

    def cut(self, limit: int, slot_id: int) -> Cut | None:
        """The next items, ``limit`` at most; None where none can be had now."""
        while True:
            with self._news:
                places, values = self._take(self._bounded(limit))
                self._hungry = not places
                if places:
                    self._sizes[slot_id] = len(places)
            if not places:
                self._settle()
                return None
            places, values = self._undone(places, values)
            places, values, batch = self._pack(places, values)
            if not places:
                continue
            with self._news:
                self._bytes += batch.size_bytes
                self._measured += len(places)
                self._unended += len(places)
            return Cut(places, values, batch)

    def give_back(self, places: Sequence[int], values: Sequence[Any]) -> None:
        """Items of a span that never began: they are cut again, first of all."""
        with self._news:
            self._unended -= len(places)
            self._returned.extendleft(reversed(list(zip(places, values, strict=True))))

    def succeeded(self, places: Sequence[int], run: Successes, lane: tuple[int, str]) -> None:
        """The items at these places ended well."""
        count, size = len(run), run.batch.size_bytes
        if isinstance(places, range):
            rows = [Ended(self, places.start, count, run.batch, lane=lane, successes=run)]
        else:
            rows = [
                Ended(self, one, 1, _one_of(run, number), lane=lane, successes=run, place=number)
                for number, one in enumerate(places)
            ]
        self._put(rows, size, ended=count)

    def ender(self, place: int) -> Callable[[Outcome, Job], None]:
        """What is told the end of an item that goes, or went, alone."""

        def end(outcome: Outcome, job: Job) -> None:
            error = batch = None
            if outcome.ending is not Ending.SUCCEEDED:
                error = error_of(outcome)
            else:
                payload = outcome.payload
                parcel = payload if isinstance(payload, Parcel) else Parcel((payload,))
                batch = Batch(1, parcels=(parcel,))
            last = job.attempts[-1] if job.attempts else None
            lane = (last.slot, last.device_id) if last is not None else None
            size = batch.size_bytes if batch is not None else 0
            self._put([Ended(self, place, 1, batch, error, lane, outcome=outcome)], size, ended=1)

        return end

    def abandon(self, error: BaseException) -> None:
        """Nothing of it will be sent any more; what has not ended ends with this error."""
        with self._news:
            self._dropped = True
            self.broken = self.broken or error
        self._settle()
        self._mailbox.tell()

    def let_go(self) -> None:
        """Nobody will tell of what was cut and has not ended."""

    # For the reader.

    def pull(self) -> bool:
        """Read as many items from the source as there is need and room for; False when none.

        The caller's code runs here, so nothing is locked meanwhile.
        """
        with self._news:
            count = self._room()
            if count <= 0 or self.is_spent or self._items.rest == 0:
                return False
            if self._items.anywhere:
                hungry, self._hungry = self._hungry, False
                if hungry:
                    self._wake()
                return False
        taken = self._items.take(count)
        with self._news:
            self._ready.extend(taken)
            self._pulled += len(taken)
            self._hungry = False
        self._settle()
        self._wake()
        return True

    def note_read(self, count: int) -> None:
        """So many items have been read in all."""
        self._read = count
        self._asked = True

    def is_over(self, count: int) -> bool:
        """Whether that many items are all there are, to the end or to the source's error."""
        with self._news:
            return self._items.rest == 0 and count >= self._pulled

    @property
    def is_unread(self) -> bool:
        """Whether its results are to be had without anybody having asked for them yet."""
        return not self._asked and self._buffersize is None

    @property
    def source_error(self) -> Exception | None:
        """What the source raised after its last item."""
        return self._items.error

    def needs_reader(self) -> bool:
        """Whether its reader has something to do: to pull, or to hear that it is broken."""
        return self.broken is not None or (
            self._hungry and self.rest > 0 and not self._dropped and self._room() > 0
        )

    def drop(self) -> None:
        """Nobody reads on: what has not been sent never is."""
        with self._news:
            self._dropped = True
        self._settle()
        self._wake()

    def pump(self) -> None:
        """Read the source to its end, whatever waits to be read: the executor is to end."""
        while not self.is_spent and self._items.rest and self.broken is None:
            with self._news:
                self._read = self._pulled  # so that there is room
            if not self.pull():
                with self._news:
                    if not self.needs_reader():
                        self._news.wait(1.0)

    # Inside.

    def _bounded(self, limit: int) -> int:
        if self.chunk is not None:
            limit = self.chunk
        if self._buffersize is not None:
            limit = min(limit, max(1, self._buffersize // (2 * self._lanes)))
        if self._measured:
            limit = min(limit, max(1, int(SPAN_BYTES * self._measured / (self._bytes or 1))))
        return limit

    def _take(self, limit: int) -> tuple[Sequence[int], list[Any]]:
        if self._dropped:
            return (), []
        if self._returned:
            count = min(limit, len(self._returned))
            pairs = [self._returned.popleft() for _ in range(count)]
            return [place for place, _ in pairs], [value for _, value in pairs]
        if self._items.anywhere:
            if self._buffersize is not None:
                limit = min(limit, self._buffersize - (self._pulled - self._read))
            values = self._items.take(limit) if limit > 0 else []
            self._pulled += len(values)
            start = self._pulled - len(values)
        else:
            start = self._pulled - len(self._ready)
            values = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
            if len(self._ready) < sum(self._sizes.values()) and self._items.rest:
                self._hungry = True
                self._news.notify_all()
        return range(self._first + start, self._first + start + len(values)), values

    def _room(self) -> int:
        """How many more items the source may be asked for now."""
        outstanding = self._pulled - self._read
        if self._buffersize is not None:
            return self._buffersize - outstanding
        wanted = 2 * max(sum(self._sizes.values()), self._lanes)
        if self._measured and self._bytes:
            most = WINDOW_BYTES * self._measured // self._bytes
        else:
            most = WINDOW_ITEMS
        most = max(min(max(WINDOW_ITEMS, 4 * wanted), most), 2 * self._lanes)
        return min(wanted - len(self._ready), most - outstanding)

    def _pack(
        self, places: Sequence[int], values: list[Any]
    ) -> tuple[Sequence[int], list[Any], Batch]:
        try:
            return places, values, pack_all(values, _pack_item)
        except NotTransferable:
            pass  # one of them is to blame: each for itself
        good: list[tuple[int, Any, Parcel]] = []
        for place, value in zip(places, values, strict=True):
            try:
                good.append((place, value, _pack_item(value)))
            except NotTransferable as error:
                self._not_sent(place, error)
        batch = Batch(len(good), parcels=tuple(parcel for _, _, parcel in good))
        return [place for place, _, _ in good], [value for _, value, _ in good], batch

    def _put(self, rows: list[Ended], size: int, *, ended: int = 0) -> None:
        """Leave rows for the reader; with ``ended``, so many of the items that were cut."""
        with self._news:
            self._mailbox.ended.extend(rows)
            self._bytes += size
            self._unended -= ended
        self._settle()
        self._mailbox.tell()

    def _not_sent(self, place: int, error: NotTransferable) -> None:
        """An item cannot be given to a worker."""
        self._put([Ended(self, place, 1, None, error)], 0)

    def _undone(self, places: Sequence[int], values: list[Any]) -> tuple[Sequence[int], list[Any]]:
        """Those of the items that are to be done: all of them."""
        return places, values

    def _settle(self) -> None:
        """Something has ended, or it is known now where the items end."""


def _pack_item(value: Any) -> Parcel:
    return dump_parcel(value, "an item")


def _one_of(run: Successes, place: int) -> Batch:
    payload = run.payload(place)
    parcel = payload if isinstance(payload, Parcel) else Parcel((payload,))
    return Batch(1, parcels=(parcel,))
