"""Functions, arguments and results as bytes between the caller and its workers."""

from __future__ import annotations

import io
import pickle
import sys
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from exo.gpu.execution.main_namespace import CallersMain
from exo.gpu.execution.packing import pack, unpack
from exo.gpu.vocabulary.errors import ExecutionError, NotTransferable, TimedOut, WorkerDied
from exo.gpu.vocabulary.job import Cause, Ending, Outcome
from exo.gpu.vocabulary.parcel import Parcel

if TYPE_CHECKING:
    from collections.abc import Callable

# The worker's __main__ is its own: what lives in the caller's has to travel by value.
_MAIN = b"__main__"


def dump(value: object, what: str) -> bytes:
    """The bytes of a value in one piece; by value where pickle cannot name it.

    Raises:
        NotTransferable: naming ``what`` and the reason.

    """
    try:
        pickled = pickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001 - pickle raises whatever an object's reducer does
        pickled = None
    if pickled is not None and _MAIN not in pickled:
        return pickled
    buffer = io.BytesIO()
    try:
        _by_value_pickler(buffer, protocol=5).dump(value)
    except Exception as problem:
        raise NotTransferable(f"{what} cannot be sent to a worker: {problem}") from problem
    return buffer.getvalue()


def dump_parcel(value: object, what: str) -> Parcel:
    """A value with its large arrays beside it; by value where pickle cannot name it.

    Raises:
        NotTransferable: naming ``what`` and the reason.

    """
    try:
        return pack(value, _by_value_pickler)
    except Exception as problem:
        raise NotTransferable(f"{what} cannot be sent to a worker: {problem}") from problem


def _by_value_pickler(file: Any, **options: Any) -> Any:
    import cloudpickle

    pickler = cloudpickle.Pickler(file, **options)
    # Functions of __main__ keep sharing their globals, also across pickles.
    pickler.globals_ref[id(sys.modules["__main__"].__dict__)] = CallersMain()
    return pickler


def dump_function(function: Callable[..., Any]) -> Parcel:
    """The parcel of a function.

    Raises:
        NotTransferable: naming the function and the reason.

    """
    return dump_parcel(function, f"the function {getattr(function, '__qualname__', function)!r}")


def load_result(payload: bytes | Parcel) -> Any:
    """The result that a worker sent.

    Raises:
        NotTransferable: when this process cannot make sense of it.

    """
    try:
        return unpack(payload) if isinstance(payload, Parcel) else pickle.loads(payload)
    except Exception as problem:
        raise NotTransferable(f"the result cannot be read here: {problem}") from problem


class RemoteTraceback(Exception):
    """The traceback in the worker, as the cause of the exception that the caller sees."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        """The worker's traceback, set off from the caller's."""
        return f'\n"""\n{self.text}"""'


def load_error(payload: bytes | Parcel) -> BaseException:
    """The exception that a worker sent, with the worker's traceback as its cause.

    One that cannot be rebuilt here becomes an ``ExecutionError`` with its class and text.
    """
    assert isinstance(payload, bytes)
    pickled, summary, text, *_ = pickle.loads(payload)
    error: object = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except Exception:  # noqa: BLE001 - an exception's constructor may ask for anything
            error = None
    if not isinstance(error, BaseException):
        error = ExecutionError(summary)
    error.__cause__ = RemoteTraceback(text)
    return error


def error_of(outcome: Outcome) -> BaseException:
    """The exception that a caller gets for an item that did not succeed."""
    if outcome.cause is Cause.CANCELLED:
        return CancelledError(outcome.reason)
    if outcome.cause is Cause.TIMEOUT:
        return TimedOut(outcome.reason)
    if outcome.ending is not Ending.FAILED or not outcome.payload:
        return WorkerDied(outcome.reason)
    error = load_error(outcome.payload)
    if outcome.reason:
        error.add_note(f"exo.gpu: {outcome.reason}")
    return error


def names_and_text(payload: bytes | Parcel) -> tuple[tuple[str, ...], str]:
    """The classes of the exception that a worker sent, its own first, and its text."""
    assert isinstance(payload, bytes)
    _, summary, _, *names = pickle.loads(payload)
    return (tuple(names[0]) if names else ()), summary
