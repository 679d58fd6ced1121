"""GPUExecutor: Python functions on pinned workers of unlike devices, as a standard executor."""

from __future__ import annotations

import atexit
import itertools
import logging
import queue
import sys
import time
import weakref
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

import msgspec

from exo.gpu.coordination.dispatcher import Dispatcher
from exo.gpu.coordination.jobs import Function, Job
from exo.gpu.coordination.wishes import Wishes, request_of
from exo.gpu.execution.payloads import dump, dump_function, load_error, load_result
from exo.gpu.nodes.local import LocalNode
from exo.gpu.vocabulary.errors import (
    ExecutionError,
    ExecutorClosed,
    InvalidValue,
    NotTransferable,
    WorkerDied,
)
from exo.gpu.vocabulary.job import Attempt, Ending, Outcome, SlotSetup
from exo.gpu.vocabulary.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_OF_A_GANG = frozenset({"count", "same_node", "interconnect"})


class GPUFuture(Future[Result]):
    """A future that also knows where and how often its item was tried."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: tuple[Attempt, ...] = ()
        """Every try, in order; complete once the future is done."""

    @property
    def device_id(self) -> str | None:
        """The device of the last try, or None before there was one."""
        return self.attempts[-1].device_id if self.attempts else None


class Done(msgspec.Struct, Generic[Result], frozen=True):
    """One item that succeeded; times are Unix seconds of its last try."""

    item_index: int
    device_id: str
    slot: int
    started_at: float
    ended_at: float
    result: Result


class GPUExecutor(Executor):
    """Runs functions in worker processes, each pinned to one slot of one device.

    A free slot pulls the next items, so a fast device does more of them. When a worker dies, its
    unfinished items run again elsewhere, up to ``max_attempts`` times: every result comes back
    exactly once, but the work itself may have started more than once.

    Only devices of the best class, and of the runtime of the best device, are used, unless
    ``devices``, ``runtime`` or ``all_devices`` says otherwise; what was left out is in
    :attr:`left_out` and in the log. ``memory`` is what one worker needs in total, as ``"2GiB"``
    or bytes, and ``wishes`` are further fields of a request, for one worker each: ``share``,
    ``labels``, ``policy``, ``priority``, ``holder`` and so on. ``slots`` is how many workers a
    device gets, by default what the device states. ``initializer`` is called once in each worker.
    ``node`` is a node to share, which then stays open at shutdown. With ``wait`` (``"30m"`` or
    seconds) the first device is waited for in the line, so long.

    Raises:
        NeverAvailable: when no device here can ever satisfy it.
        NotNow: when one could, but not at the moment.
        TypeError: for a wish that nobody knows, with the near spelling.
        InvalidValue: naming what cannot be.

    """

    def __init__(
        self,
        *,
        memory: str | int | None = None,
        slots: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        node: Node | None = None,
        max_attempts: int = 3,
        wait: str | float | None = None,
        **wishes: Unpack[Wishes],
    ) -> None:
        if max_attempts < 1:
            raise InvalidValue("max_attempts", max_attempts, "a whole number of at least 1")
        for name in _OF_A_GANG.intersection(wishes):
            raise TypeError(f"{name!r} is for several devices, and a worker has one")
        request = request_of(memory, **wishes)
        setup = SlotSetup(
            import_path=tuple(sys.path),
            initializer=dump((initializer, initargs), "the initializer") if initializer else None,
        )
        self._dispatcher = Dispatcher(
            node or LocalNode(),
            request,
            setup=setup,
            slots=slots,
            max_attempts=max_attempts,
            own_node=node is None,
            wait_seconds=None if wait is None else parse_duration(wait, "wait"),
        )
        self._items = itertools.count()
        self._functions = itertools.count()
        self._pending: weakref.WeakSet[GPUFuture[Any]] = weakref.WeakSet()
        self._closed = False
        # Forgotten or at the program's end: what was submitted is done, then the workers end.
        weakref.finalize(self, _let_go, self._dispatcher).atexit = False
        atexit.register(self._dispatcher.close)
        used = ", ".join(device.device_id for device in self.devices)
        for refusal in self.left_out:
            # That the host rests beside a GPU is no surprise; that a card does is.
            level = logging.INFO if refusal.rule == "class" else logging.WARNING
            logger.log(level, "using %s; left out %s: %s", used, refusal.device_id, refusal.reason)

    @property
    def devices(self) -> tuple[GPUDevice, ...]:
        """The devices in use, the preferred one first."""
        return self._dispatcher.devices

    @property
    def lanes(self) -> tuple[tuple[int, GPUDevice], ...]:
        """(slot number, device) of every worker."""
        return self._dispatcher.lanes

    @property
    def left_out(self) -> tuple[Refusal, ...]:
        """Devices that would do, but that the class and runtime rules leave out."""
        return self._dispatcher.left_out

    def start(self, timeout_seconds: float | None = None) -> None:
        """Wait until every worker has run its initializer.

        Raises:
            TimeoutError: when that took longer than ``timeout_seconds``.
            ExecutionError: when a worker could not be started, with the reason.

        """
        if not self._dispatcher.started.wait(timeout_seconds):
            raise TimeoutError(f"workers were not ready within {timeout_seconds} s")
        if self._dispatcher.problem:
            raise ExecutionError(f"no worker starts on {self._dispatcher.problem}")

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> GPUFuture[Result]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Raises:
            ExecutorClosed: after shutdown.

        """
        name = getattr(fn, "__qualname__", fn)
        return self._queue([(fn, args, kwargs)], f"the call of {name!r}")[0]

    def map(  # pyright: ignore[reportIncompatibleMethodOverride] - buffersize came with Python 3.14
        self,
        fn: Callable[..., Result],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[Result]:
        """Results of ``fn`` over the items, in order; the iterables are read at once.

        ``timeout`` in seconds bounds each wait from the call of ``map`` on. ``chunksize`` fixes
        how many items a worker takes at once; by default each worker's speed decides.

        Raises:
            ExecutorClosed: after shutdown.
            NotTransferable: when ``fn`` cannot be sent to a worker.

        """
        if chunksize is not None and chunksize < 1:
            raise InvalidValue("chunksize", chunksize, "a whole number of at least 1")
        calls = list(zip(*iterables, strict=False))
        futures: list[GPUFuture[Result]] = self._queue(calls, "an item", fn, chunk=chunksize)
        return _in_order(futures, None if timeout is None else time.monotonic() + timeout)

    def stream(self, fn: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Done[Result]]:
        """Run ``fn`` over the items and yield each as it ends, with the device that did it.

        The first item that fails raises its exception here; the others go on.
        """
        calls = [(item,) for item in items]
        return self._as_done(calls, fn, [None] * len(calls))

    def map_distribution(
        self, fn: Callable[[Any], Result], distribution: Mapping[str, Sequence[Any]]
    ) -> Iterator[Done[Result]]:
        """Run each item on the device that a distribution assigned it to; yield each as it ends.

        ``item_index`` counts through the devices in the distribution's order. After the death of
        a worker, its items may run on another device.

        Raises:
            InvalidValue: naming a device that this executor does not use.

        """
        used = [device.device_id for device in self.devices]
        for device_id, items in distribution.items():
            if items and device_id not in used:
                raise InvalidValue("distribution", device_id, f"among the devices in use: {used}")
        pairs = [(name, item) for name, items in distribution.items() for item in items]
        return self._as_done([(item,) for _, item in pairs], fn, [name for name, _ in pairs])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; end the workers once what was submitted has ended.

        With ``cancel_futures`` what has not begun is cancelled. Harmless twice.
        """
        self._closed = True
        atexit.unregister(self._dispatcher.close)
        if cancel_futures:
            for future in list(self._pending):
                future.cancel()
        self._dispatcher.close(drop=cancel_futures, wait=wait)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all work; an interrupt ends the workers at once instead."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._kill()
        else:
            self.shutdown(wait=True)

    def _kill(self) -> None:
        self._dispatcher.close(kill=True)
        self.shutdown(cancel_futures=True)

    def _as_done(
        self, calls: list[tuple[Any, ...]], fn: Callable[[Any], Result], places: list[str | None]
    ) -> Iterator[Done[Result]]:
        ended: queue.SimpleQueue[tuple[int, GPUFuture[Result]]] = queue.SimpleQueue()
        futures: list[GPUFuture[Result]] = self._queue(calls, "an item", fn, places=places)
        for index, future in enumerate(futures):
            future.add_done_callback(_putter(ended, index, future))
        return _as_ended(ended, futures)

    def _queue(
        self,
        calls: Sequence[Any],
        what: str,
        fn: Callable[..., Any] | None = None,
        *,
        chunk: int | None = None,
        places: list[str | None] | None = None,
    ) -> list[GPUFuture[Any]]:
        if self._closed:
            raise ExecutorClosed("this executor was shut down: it takes no more work")
        function = Function(next(self._functions), dump_function(fn)) if fn is not None else None
        jobs: list[Job] = []
        futures: list[GPUFuture[Any]] = []
        for place, call in enumerate(calls):
            future: GPUFuture[Any] = GPUFuture()
            futures.append(future)
            try:
                payload = dump(call, what)
            except NotTransferable as error:
                future.set_running_or_notify_cancel()
                future.set_exception(error)
                continue
            jobs.append(
                Job(
                    item=next(self._items),
                    begin=future.set_running_or_notify_cancel,
                    end=_settler(future),
                    payload=payload,
                    function=function,
                    device_id=places[place] if places else None,
                    chunk=chunk,
                )
            )
        self._pending.update(futures)
        self._dispatcher.add(jobs)
        return futures


def _let_go(dispatcher: Dispatcher) -> None:
    atexit.unregister(dispatcher.close)
    dispatcher.close(wait=False)


def _settler(future: GPUFuture[Any]) -> Callable[[Outcome, Job], None]:
    def settle(outcome: Outcome, job: Job) -> None:
        future.attempts = job.attempts
        if outcome.ending is Ending.SUCCEEDED:
            try:
                future.set_result(load_result(outcome.payload))
            except NotTransferable as error:
                future.set_exception(error)
        elif outcome.ending is Ending.FAILED:
            future.set_exception(load_error(outcome.payload))
        else:
            future.set_exception(WorkerDied(outcome.reason))

    return settle


def _putter(
    ended: queue.SimpleQueue[tuple[int, GPUFuture[Result]]], index: int, future: GPUFuture[Result]
) -> Callable[[object], None]:
    return lambda _: ended.put((index, future))


def _in_order(futures: list[GPUFuture[Result]], deadline: float | None) -> Iterator[Result]:
    try:
        futures.reverse()
        while futures:
            left = None if deadline is None else deadline - time.monotonic()
            result = futures[-1].result(left)
            futures.pop()
            yield result
    finally:
        for future in futures:
            future.cancel()


def _as_ended(
    ended: queue.SimpleQueue[tuple[int, GPUFuture[Result]]], futures: list[GPUFuture[Result]]
) -> Iterator[Done[Result]]:
    try:
        for _ in range(len(futures)):
            index, future = ended.get()
            result = future.result()
            last = future.attempts[-1]
            yield Done(index, last.device_id, last.slot, last.started_at, last.ended_at, result)
    finally:
        for future in futures:
            future.cancel()


def map_items(
    function: Callable[..., Result],
    *iterables: Iterable[Any],
    memory: str | int | None = None,
    **options: Any,
) -> list[Result]:
    """Results of a function over items, in order, computed on the devices that suit it.

    ``options`` are those of :class:`GPUExecutor`; ``memory`` is what one worker needs.

    Raises:
        NeverAvailable: when no device here can ever satisfy it.
        NotNow: when one could, but not at the moment.
        Exception: whatever ``function`` raised first, in the order of the items.

    """
    with GPUExecutor(memory=memory, **options) as executor:
        return list(executor.map(function, *iterables))
