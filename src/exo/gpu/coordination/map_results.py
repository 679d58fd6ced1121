"""What map returns: results in the order of the items, for ``for`` and for ``async for``."""

from __future__ import annotations

import sys
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from exo.gpu.execution.packing import unpack_all
from exo.gpu.vocabulary.errors import NotTransferable
from exo.gpu.vocabulary.job import DONE_BEFORE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    import anyio

    from exo.gpu.coordination.map_run import Ended, Mailbox, MapRun

Result = TypeVar("Result")


class Done(msgspec.Struct, Generic[Result], frozen=True):
    """One item that succeeded; times are Unix seconds of its last try."""

    item_index: int
    device_id: str
    slot: int
    started_at: float
    ended_at: float
    result: Result


class Results(Iterator[Result], AsyncIterator[Result]):
    """Reads what maps leave in a mailbox; ``for`` and ``async for`` differ in how they wait."""

    def __init__(self, runs: list[MapRun], mailbox: Mailbox, timeout_seconds: float | None) -> None:
        self._runs = runs
        self._mailbox = mailbox
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._results = self._read_all()
        self._row: Iterator[Result] = iter(())

    def __iter__(self) -> Iterator[Result]:
        """The results; a generator, which loops read faster than this object."""
        return self._results

    def __next__(self) -> Result:
        """The next result; waits for it."""
        return next(self._results)

    def __aiter__(self) -> AsyncIterator[Result]:
        """Itself."""
        return self

    async def __anext__(self) -> Result:
        """The next result; other tasks go on meanwhile."""
        from anyio.lowlevel import checkpoint

        try:
            while True:
                for result in self._row:
                    return result
                row = self._next_row()
                if row is not None:
                    await checkpoint()
                    self._row = iter(row)
                elif self._is_over():
                    raise StopAsyncIteration
                elif not self._pull():
                    await self._news()
        except BaseException:
            self._drop()
            raise

    def close(self) -> None:
        """Read no more: what has not been sent never is."""
        self._results.close()
        self._drop()

    def _read_all(self) -> Generator[Result]:
        try:
            while True:
                row = self._next_row()
                if row is not None:
                    yield from row
                elif self._is_over():
                    return
                elif not self._pull():
                    self._mailbox.wait(self._is_wanted, self._deadline)
        finally:
            self._drop()

    @abstractmethod
    def _next_row(self) -> Iterable[Result] | None:
        """What comes next, as far as it is there; raises what came instead."""

    @abstractmethod
    def _is_over(self) -> bool:
        """Whether nothing comes any more."""

    def _is_wanted(self) -> bool:
        return any(run.needs_reader() for run in self._runs)

    def _pull(self) -> bool:
        pulled = [run.pull() for run in self._runs]  # each of them, not only the first
        return any(pulled)

    def _drop(self) -> None:
        for run in self._runs:
            run.drop()

    async def _news(self) -> None:
        """Until something has come in, or the deadline is over."""
        import anyio

        event = anyio.Event()
        self._mailbox.on_news = _setter(event)
        if self._mailbox.ended or self._is_wanted():
            return
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        with anyio.fail_after(left):
            await event.wait()


class MapResults(Results[Result]):
    """Results of a map, in the order of its items; each can be read once.

    In a coroutine of asyncio or Trio, ``async for`` reads them and lets other tasks go on. What
    an item raised is raised in its place, and nothing comes after it. Once reading has begun,
    dropping this object cancels what has not been sent. In the place of an item that was not run,
    because a journal says that it is done, stands :data:`~exo.gpu.DONE_BEFORE`.
    """

    def __init__(self, run: MapRun, mailbox: Mailbox, timeout_seconds: float | None = None) -> None:
        super().__init__([run], mailbox, timeout_seconds)
        self._run = run
        self._rows: dict[int, Ended] = {}
        self._index = 0

    def _next_row(self) -> Iterable[Result] | None:
        run, arrived = self._run, self._mailbox.ended
        while arrived:
            ended = arrived.popleft()
            self._rows[ended.first] = ended
        run.note_read(self._index)
        ended = self._rows.pop(self._index, None)
        if ended is not None:
            run.pull()
            self._index += ended.count
            return results_of(ended)
        _raise_end(run, self._index)
        return None

    def _is_over(self) -> bool:
        return not self._mailbox.ended and self._run.is_over(self._index)


class StreamedResults(Results[Done[Result]], Generic[Result]):
    """Results of maps as they end, each with where and when; each can be read once."""

    def __init__(self, runs: list[MapRun], mailbox: Mailbox) -> None:
        super().__init__(runs, mailbox, None)
        self._counts = dict.fromkeys(runs, 0)

    def _next_row(self) -> Iterable[Done[Result]] | None:
        if self._mailbox.ended:
            ended = self._mailbox.ended.popleft()
            self._counts[ended.run] += ended.count
            ended.run.note_read(self._counts[ended.run])
            ended.run.pull()
            return _done_of(ended)
        for run, count in self._counts.items():
            _raise_end(run, count)
        return None

    def _is_over(self) -> bool:
        over = all(run.is_over(count) for run, count in self._counts.items())
        return over and not self._mailbox.ended


def _raise_end(run: MapRun, count: int) -> None:
    """Raise why nothing comes after so many results, if there is a reason."""
    over = run.is_over(count)
    if over and run.source_error is not None:
        raise run.source_error
    if run.broken is not None and not over:
        raise run.broken


def results_of(ended: Ended) -> Iterable[Any]:
    """The results of items that ended together.

    Raises:
        BaseException: what the item raised.
        NotTransferable: at a result that this process cannot make sense of.

    """
    if ended.error is not None:
        raise ended.error
    if ended.skipped:
        return repeat(DONE_BEFORE, ended.count)
    assert ended.batch is not None
    if ended.batch.plain is not None:
        return unpack_all(ended.batch)
    return _unpacked(ended)


def _unpacked(ended: Ended) -> Iterator[Any]:
    assert ended.batch is not None
    try:
        yield from unpack_all(ended.batch)
    except Exception as problem:
        raise NotTransferable(f"the result cannot be read here: {problem}") from problem


def _done_of(ended: Ended) -> Iterator[Done[Any]]:
    if ended.skipped:
        return
    for number, result in enumerate(results_of(ended)):
        slot, device_id = ended.lane if ended.lane is not None else (-1, "")
        if ended.successes is not None:
            started = ended.successes.started_at(ended.place + number)
            stopped = ended.successes.ended_at(ended.place + number)
        else:
            assert ended.outcome is not None
            started, stopped = ended.outcome.started_at, ended.outcome.ended_at
        yield Done(ended.first + number, device_id, slot, started, stopped, result)


def _setter(event: anyio.Event) -> Callable[[], None]:
    """Sets an event of the present loop, from any thread and at any time."""
    trio = sys.modules.get("trio")
    if trio is not None:
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:  # it is loaded, but this is another loop
            pass
        else:
            return lambda: _unless_over(token.run_sync_soon, event, trio.RunFinishedError)
    import asyncio

    loop = asyncio.get_running_loop()
    return lambda: _unless_over(loop.call_soon_threadsafe, event, RuntimeError)


def _unless_over(
    soon: Callable[[Callable[[], object]], object], event: anyio.Event, over: type[Exception]
) -> None:
    with suppress(over):  # the loop has ended, and with it whoever waited
        soon(event.set)
