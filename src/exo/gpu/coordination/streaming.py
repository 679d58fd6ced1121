"""What a function yields on a device, read here as it comes; the reader sets the pace."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from exo.gpu.coordination.items import Job
from exo.gpu.execution.payloads import dump_parcel, error_of, load_result
from exo.gpu.vocabulary.job import Attempt, Ending, Outcome, SlotChunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from exo.gpu.coordination.dispatcher import Dispatcher

Chunk = TypeVar("Chunk")


class ChunkStream(Generic[Chunk]):
    """Chunks in order, then the end: of the iteration, or the function's exception. Read it once.

    The function runs ahead of its reader by a few chunks only, and waits then. :meth:`cancel`
    ends it between two chunks, or in the middle of one that takes long; so does leaving a
    ``with`` block before the end. With the first chunk there is no other try on another device.
    """

    def __init__(self) -> None:
        self.attempts: tuple[Attempt, ...] = ()
        """Every try, in order; complete at the end."""
        self._arrived: queue.SimpleQueue[SlotChunk | Outcome] = queue.SimpleQueue()
        self._more: Callable[[int], None] | None = None
        self._cancel: Callable[[], None] | None = None
        self._wake: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._over = False

    def attach(self, cancel: Callable[[], None]) -> None:
        """Whoever runs it says how it is cancelled."""
        self._cancel = cancel

    def chunk(self, chunk: SlotChunk, more: Callable[[int], None]) -> None:
        """One chunk came; ``more`` lets the function be so many chunks more ahead."""
        self._more = more
        self._put(chunk)

    def end(self, outcome: Outcome, job: Job) -> None:
        """It ended."""
        self.attempts = job.attempts
        self._put(outcome)

    def cancel(self) -> None:
        """End it; what has come already can still be read. Harmless twice and after the end."""
        if self._cancel is not None and not self._over:
            self._cancel()

    def __enter__(self) -> ChunkStream[Chunk]:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it where it has not ended."""
        self.cancel()

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks; blocks until each is there."""
        while not self._over:
            value = self._take(self._arrived.get())
            if not self._over:
                yield value

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The chunks, for an asyncio program; other tasks run while one is awaited."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        while not self._over:
            ready.clear()
            try:
                arrived = self._arrived.get_nowait()
            except queue.Empty:
                await ready.wait()
                continue
            value = self._take(arrived)
            if not self._over:
                yield value

    def _put(self, arrived: SlotChunk | Outcome) -> None:
        with self._lock:
            self._arrived.put(arrived)
            if self._wake is not None:
                self._wake()

    def _take(self, arrived: SlotChunk | Outcome) -> Any:
        if isinstance(arrived, SlotChunk):
            if self._more is not None:
                self._more(1)
            return load_result(arrived.payload)
        self._over = True
        if arrived.ending is not Ending.SUCCEEDED:
            raise error_of(arrived)
        return None


def start_stream(
    dispatcher: Dispatcher,
    fn: Callable[..., Iterable[Chunk]],
    args: tuple[Any, ...],
    deadline_seconds: float | None,
) -> ChunkStream[Chunk]:
    """Send a generator function; it may take so long until it has yielded everything.

    Raises:
        ExecutorClosed: when the dispatcher has ended.
        NotTransferable: when the call cannot be sent to a worker.

    """
    stream: ChunkStream[Chunk] = ChunkStream()
    item = dispatcher.numbers.take()
    no_names: dict[str, Any] = {}
    what = f"the call of {getattr(fn, '__qualname__', fn)!r}"
    job = Job(
        item=item,
        begin=lambda: True,
        end=stream.end,
        payload=dump_parcel((fn, args, no_names), what),
        deadline_seconds=deadline_seconds,
        on_chunk=stream.chunk,
    )
    stream.attach(lambda: dispatcher.cancel(item))
    dispatcher.add([job])
    return stream
