"""The future of one item: a standard one that knows its tries and can be cancelled at any time."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, TypeVar

from exo.gpu.execution.payloads import error_of, load_result
from exo.gpu.vocabulary.errors import NotTransferable
from exo.gpu.vocabulary.job import Attempt, Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from exo.gpu.coordination.dispatcher import Dispatcher
    from exo.gpu.coordination.items import Job

Result = TypeVar("Result")


class GPUFuture(Future[Result]):
    """A future that also knows where and how often its item was tried."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: tuple[Attempt, ...] = ()
        """Every try, in order; complete once the future is done."""
        self._dispatcher: Dispatcher | None = None
        self._item = -1
        self._was_stopped = False

    @property
    def device_id(self) -> str | None:
        """The device of the last try, or None before there was one."""
        return self.attempts[-1].device_id if self.attempts else None

    device = device_id

    def attach(self, dispatcher: Dispatcher, item: int) -> None:
        """Whoever runs it says how it is cancelled."""
        self._dispatcher, self._item = dispatcher, item

    def cancel(self) -> bool:
        """Cancel it, also while it runs; False only once it is done.

        A function that runs is interrupted by KeyboardInterrupt; where that does not end it
        within some seconds, its process is ended. Nobody waits for that: the future is cancelled
        when this returns.
        """
        if super().cancel():
            return True
        was_cancelled, self._was_stopped = self._was_stopped, True
        try:
            self.set_exception(CancelledError("it was cancelled while it ran"))
        except InvalidStateError:  # it is done
            self._was_stopped = was_cancelled
            return was_cancelled
        if self._dispatcher is not None:
            self._dispatcher.cancel(self._item)
        return True

    def cancelled(self) -> bool:
        """Whether it was cancelled, before it ran or while it did."""
        return self._was_stopped or super().cancelled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised; None where it did not.

        Raises:
            CancelledError: where it was cancelled.
            TimeoutError: where it has not ended within so many seconds.

        """
        error = super().exception(timeout)
        if error is not None and self._was_stopped:
            raise error
        return error


def settler(future: GPUFuture[Any]) -> Callable[[Outcome, Job], None]:
    """What tells a future of its item's end."""

    def settle(outcome: Outcome, job: Job) -> None:
        future.attempts = job.attempts
        if future.cancelled():
            return
        if outcome.ending is not Ending.SUCCEEDED:
            _set(future, None, error_of(outcome))
            return
        try:
            result = load_result(outcome.payload)
        except NotTransferable as error:
            _set(future, None, error)
        else:
            _set(future, result, None)

    return settle


def _set(future: GPUFuture[Any], result: Any, error: BaseException | None) -> None:
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except InvalidStateError:
        assert future.cancelled(), "an item ends once"  # it was cancelled this very moment
