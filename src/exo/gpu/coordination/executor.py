"""GPUExecutor: Python functions on pinned workers of unlike devices, as a standard executor."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import queue
import sys
import weakref
from concurrent.futures import CancelledError, Executor
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from exo.gpu.coordination.cluster import home_of
from exo.gpu.coordination.futures import GPUFuture, settler
from exo.gpu.coordination.items import Function, Job
from exo.gpu.coordination.map_results import Done, MapResults, StreamedResults
from exo.gpu.coordination.map_run import Mailbox, MapRun
from exo.gpu.coordination.open_slots import OpenSlots
from exo.gpu.coordination.program_end import end_with_program
from exo.gpu.coordination.recorded_run import begin_run
from exo.gpu.coordination.slots import tell_left_out
from exo.gpu.coordination.wishes import Wishes, request_of
from exo.gpu.execution.payloads import dump, dump_function, dump_parcel
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.retry import RetryPolicy, retry_names
from exo.gpu.vocabulary.errors import (
    ExecutionError,
    ExecutorClosed,
    InvalidValue,
    NotTransferable,
)
from exo.gpu.vocabulary.job import SlotSetup
from exo.gpu.vocabulary.units import check_whole, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from exo.gpu.coordination.cluster_side import ClusterSide
    from exo.gpu.coordination.streaming import ChunkStream
    from exo.gpu.nodes.transport import Node
    from exo.gpu.vocabulary.decision import Refusal
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.job import SlotOutput

__all__ = ["Done", "GPUExecutor", "GPUFuture"]

Result = TypeVar("Result")

_OF_A_GANG = frozenset({"count", "same_node", "interconnect"})


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
    ``node`` is a node to share, which then stays open at shutdown; ``cluster`` an address, or what
    ``GPUClusteringManager.connect`` gave. With ``wait`` (``"30m"`` or seconds) the first device is
    waited for in the line, so long.

    ``deadline`` (``"10m"`` or seconds) is how long each item may run. ``retries`` is how many
    further tries an item gets that failed by itself, where ``retry_on`` is given only after these
    exception classes, causes or exit statuses. One that ran out of memory is tried again with
    more, unless ``grow`` is False. ``fresh`` starts a process for each item, and
    ``max_tasks_per_worker`` replaces one after so many. ``on_output`` hears what workers print,
    from other threads, and ``on_device_lost`` of a device that an item found gone.

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
        cluster: str | ClusterSide | None = None,
        max_attempts: int = 3,
        wait: str | float | None = None,
        retries: int = 0,
        retry_on: Iterable[object] = (),
        grow: bool = True,
        deadline: str | float | None = None,
        fresh: bool = False,
        max_tasks_per_worker: int | None = None,
        on_output: Callable[[SlotOutput], None] | None = None,
        on_device_lost: Callable[[GPUDevice, str], None] | None = None,
        **wishes: Unpack[Wishes],
    ) -> None:
        retry = RetryPolicy(
            max_attempts=max_attempts, retries=retries, retry_on=retry_names(retry_on), grow=grow
        )
        check_whole("max_tasks_per_worker", max_tasks_per_worker, low=1, optional=True)
        self._deadline_seconds = None if deadline is None else parse_duration(deadline, "deadline")
        for name in _OF_A_GANG.intersection(wishes):
            raise TypeError(f"{name!r} is for several devices, and a worker has one")
        request = request_of(memory, **wishes)
        setup = SlotSetup(
            import_path=tuple(sys.path),
            initializer=dump((initializer, initargs), "the initializer") if initializer else None,
            max_tasks_per_worker=1 if fresh else max_tasks_per_worker,
        )
        home, own = (node or LocalNode(), node is None) if cluster is None else home_of(cluster)
        inbox = queue.SimpleQueue[Any]()
        try:
            pool = OpenSlots(home, setup, inbox.put, on_output)
            wait_seconds = None if wait is None else parse_duration(wait, "wait")
            pool.open_all((request,), slots, wait_seconds)
        except BaseException:
            if own:
                home.close()
            raise
        # Loaded while the workers come up.
        from exo.gpu.coordination.dispatcher import Dispatcher

        self._dispatcher = Dispatcher(
            home,
            request,
            setup=setup,
            retry=retry,
            own_node=own,
            on_device_lost=on_device_lost,
            pool=pool,
            inbox=inbox,
        )
        self._functions = itertools.count()
        self._maps: weakref.WeakSet[MapRun] = weakref.WeakSet()
        self._pending: weakref.WeakSet[GPUFuture[Any]] = weakref.WeakSet()
        self._closed = False
        # Forgotten or at the program's end: what was submitted is done, then the workers end.
        weakref.finalize(self, self._dispatcher.close, wait=False).atexit = False
        end_with_program(self._dispatcher)
        tell_left_out(self.devices, self.left_out)

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
        self._check_open()
        future: GPUFuture[Result] = GPUFuture()
        name = getattr(fn, "__qualname__", None)
        try:
            payload = dump_parcel((fn, args, kwargs), f"the call of {name or fn!r}")
        except NotTransferable as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        item = self._dispatcher.numbers.take()
        future.attach(self._dispatcher, item)
        self._pending.add(future)
        job = Job(
            item=item,
            begin=future.set_running_or_notify_cancel,
            end=settler(future),
            payload=payload,
            kind=name,
            deadline_seconds=self._deadline_seconds,
        )
        self._dispatcher.add([job])
        return future

    def map(  # pyright: ignore[reportIncompatibleMethodOverride] - buffersize came with Python 3.14
        self,
        fn: Callable[..., Result],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> MapResults[Result]:
        """Results of ``fn`` over the items, in order, for ``for`` and for ``async for``.

        Lists, tuples and ranges run to their end whether or not results are read. Any other
        iterable is read in the caller's thread, here and while results are waited for, and only
        so far ahead that no worker waits: it may be without end. ``buffersize`` bounds how many
        items are taken and not read yet. What the iterable raises comes after the results before
        it. ``timeout`` in seconds is for all results, from now on. ``chunksize`` fixes how many
        items a worker takes at once; by default each worker's speed decides.

        ``journal`` is a file that is told of each chunk of items once ``fn`` has returned for
        them. With ``resume`` an earlier run of the same items is gone on with: what succeeded
        then is not done again, and :data:`~exo.gpu.DONE_BEFORE` stands for its result.

        Raises:
            ExecutorClosed: after shutdown.
            NotTransferable: when ``fn`` cannot be sent to a worker.
            JournalError: when the journal cannot be written, is in use, or is of another map.

        """
        check_whole("chunksize", chunksize, low=1, optional=True)
        check_whole("buffersize", buffersize, low=1, optional=True)
        if not iterables:
            raise InvalidValue("iterables", iterables, "at least one to take items from")
        mailbox = Mailbox()
        run = self._run(
            self._function(fn),
            iterables,
            mailbox=mailbox,
            journal=journal,
            resume=resume,
            chunk=chunksize,
            buffersize=buffersize,
        )
        results: MapResults[Result] = MapResults(run, mailbox, timeout)
        run.pull()
        self._dispatcher.add([run])
        return results

    def stream(
        self,
        fn: Callable[[Any], Result],
        items: Iterable[Any],
        *,
        buffersize: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> StreamedResults[Result]:
        """Run ``fn`` over the items and yield each as it ends, with the device that did it.

        For ``for`` and ``async for``. The first item that fails raises its exception here; what has
        not been sent then never is. Items are read, and recorded, as by :meth:`map`.
        """
        check_whole("buffersize", buffersize, low=1, optional=True)
        mailbox = Mailbox()
        run = self._run(
            self._function(fn),
            (items,),
            mailbox=mailbox,
            journal=journal,
            resume=resume,
            buffersize=buffersize,
        )
        run.pull()
        self._dispatcher.add([run])
        return StreamedResults([run], mailbox)

    @staticmethod
    def as_completed(
        futures: Iterable[GPUFuture[Result]], timeout: float | None = None
    ) -> Iterator[GPUFuture[Result]]:
        """The futures in the order in which they end; TimeoutError after ``timeout`` seconds."""
        return concurrent.futures.as_completed(futures, timeout)  # type: ignore[return-value]

    def chunks(self, fn: Callable[..., Iterable[Result]], /, *args: Any) -> ChunkStream[Result]:
        """What a generator function yields on a device, as it comes.

        Raises:
            ExecutorClosed: after shutdown.
            NotTransferable: when the call cannot be sent to a worker.

        """
        from exo.gpu.coordination.streaming import start_stream

        self._check_open()
        return start_stream(self._dispatcher, fn, args, self._deadline_seconds)

    def map_distribution(
        self, fn: Callable[[Any], Result], distribution: Mapping[str, Sequence[Any]]
    ) -> StreamedResults[Result]:
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
        self._check_open()
        mailbox, first = Mailbox(), 0
        function = self._function(fn)
        runs: list[MapRun] = []
        for device_id, items in distribution.items():
            options = {"mailbox": mailbox, "device_id": device_id, "first": first}
            runs.append(self._run(function, (items,), **options))
            first += len(items)
        for run in runs:
            run.pull()
        self._dispatcher.add(runs)
        return StreamedResults(runs, mailbox)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; end the workers once what was submitted has ended.

        Of a map whose results nobody began to read, the items are read to their end first, if
        ``buffersize`` does not forbid it; of one that was read in part, no more are taken. With
        ``cancel_futures`` what has not begun is cancelled. Harmless twice.
        """
        self._closed = True
        if cancel_futures:
            for future in list(self._pending):
                if not future.running():
                    future.cancel()
            for run in list(self._maps):
                run.abandon(CancelledError("the executor was shut down"))
        elif wait:
            for run in list(self._maps):
                if run.is_unread:
                    run.pump()
        self._dispatcher.close(drop=cancel_futures, wait=wait)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all work; an interrupt or a cancelled task ends the workers at once."""
        if error is not None and not isinstance(error, (Exception, GeneratorExit)):
            self._kill()
            return
        try:
            self.shutdown(wait=True)
        except (KeyboardInterrupt, SystemExit):
            self._kill()
            raise

    def _kill(self) -> None:
        self._dispatcher.close(kill=True)
        self.shutdown(cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise ExecutorClosed("this executor was shut down: it takes no more work")

    def _function(self, fn: Callable[..., Any]) -> Function:
        self._check_open()
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        name = f"{getattr(fn, '__module__', '?')}.{name}"
        return Function(next(self._functions), dump_function(fn), name)

    def _run(
        self, function: Function, iterables: Sequence[Iterable[Any]], **options: Any
    ) -> MapRun:
        run = begin_run(
            function,
            iterables,
            wake=self._dispatcher.nudge,
            lanes=len(self.lanes),
            deadline_seconds=self._deadline_seconds,
            **options,
        )
        self._maps.add(run)
        return run
