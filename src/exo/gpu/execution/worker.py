"""Inside the child: takes functions and items from its socket, and reports every ending.

Run by path, ``python worker.py FD``, in the environment that pins it. It needs the standard
library only; cloudpickle is loaded by the first function that was pickled by value.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Both sides keep this many functions and forget the one used longest ago, so that they agree.
FUNCTIONS_KEPT = 8

# Outcomes are held back this long at most, so that short items share a frame.
REPORT_SECONDS = 0.02


def main(descriptor: int) -> int:
    """Serve the socket until the parent closes it; 0 then, 1 when the set-up was refused."""
    # As a script, this folder leads sys.path, where our file names would shadow others'.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".") != Path(__file__).parent]
    sys.path.append(str(Path(__file__).parents[3]))
    from exo.gpu.execution.frames import Frame, receive_frame, send_frame

    stream = socket.socket(fileno=descriptor)
    functions: OrderedDict[int, Callable[..., Any]] = OrderedDict()
    origin = time.time() - time.perf_counter()
    while True:
        frame = receive_frame(stream)
        if frame is None:
            return 0
        kind, payload = frame
        if kind is Frame.SETUP:
            problem = _set_up(*pickle.loads(payload))
            if problem is not None:
                send_frame(stream, Frame.REFUSED, pickle.dumps(problem))
                return 1
            send_frame(stream, Frame.READY, pickle.dumps(os.getpid()))
        elif kind is Frame.FUNCTION:
            number, pickled = pickle.loads(payload)
            functions[number] = _load_function(pickled)
            while len(functions) > FUNCTIONS_KEPT:
                functions.popitem(last=False)
        else:
            number, pickled = pickle.loads(payload)
            if number is not None:
                functions.move_to_end(number)
            function = functions[number] if number is not None else _apply
            _work(stream, function, pickled, origin)
            send_frame(stream, Frame.IDLE, b"")


def _set_up(path: list[str], initializer: bytes | None) -> str | None:
    known = set(sys.path)
    sys.path[:0] = [entry for entry in path if entry not in known]
    if initializer is None:
        return None
    try:
        from exo.gpu.execution.main_namespace import load

        function, arguments = load(initializer)
        function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever the user's code raises is reported
        return traceback.format_exc()
    return None


def _apply(call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
    function, arguments, keywords = call
    return function(*arguments, **keywords)


def _load_function(pickled: bytes) -> Callable[..., Any]:
    try:
        from exo.gpu.execution.main_namespace import load

        function = load(pickled)
    except BaseException as error:  # noqa: BLE001 - every item of this function reports it
        problem = error

        def refuse(*_: object) -> None:
            raise problem

        return refuse

    def call(arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    return call


def _work(
    stream: socket.socket, function: Callable[..., Any], pickled: bytes, origin: float
) -> None:
    from exo.gpu.execution.frames import Frame, send_frame
    from exo.gpu.execution.main_namespace import load

    outcomes: list[tuple[int, bool, float, float, bytes]] = []
    reported = time.perf_counter()
    for place, item in enumerate(pickle.loads(pickled)):
        started = time.perf_counter()
        try:
            succeeded, payload = True, pickle_result(function(load(item)))
        except BaseException as error:  # noqa: BLE001 - the item's own failure, sys.exit included
            succeeded, payload = False, pickle_error(error)
        ended = time.perf_counter()
        outcomes.append((place, succeeded, origin + started, origin + ended, payload))
        if ended - reported > REPORT_SECONDS:
            send_frame(stream, Frame.OUTCOMES, pickle.dumps(outcomes))
            outcomes, reported = [], ended
    if outcomes:
        send_frame(stream, Frame.OUTCOMES, pickle.dumps(outcomes))


def pickle_result(value: object) -> bytes:
    """The bytes of a result; what pickle cannot name goes by value.

    Raises:
        TypeError: saying what could not be pickled.

    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as problem:  # noqa: BLE001 - pickle raises whatever an object's reducer does
        return _pickle_by_value(value, problem)


def _pickle_by_value(value: object, problem: Exception) -> bytes:
    try:
        import cloudpickle

        return cloudpickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001 - the first problem says more
        text = f"the result, of type {type(value).__qualname__}, cannot be pickled: {problem}"
        raise TypeError(text) from None


def pickle_error(error: BaseException) -> bytes:
    """(pickled exception or None, its class and text, traceback) as bytes."""
    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()
    try:
        pickled = pickle_result(error)
    except Exception:  # noqa: BLE001 - then the text alone travels
        pickled = None
    return pickle.dumps((pickled, summary, text))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
