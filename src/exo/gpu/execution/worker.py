"""Inside the child: takes functions and items from its socket, and reports every ending.

Run by path, ``python worker.py FD``, in the environment that pins it. It needs the standard
library only; cloudpickle is loaded by the first function that was pickled by value.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
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

# How soon a worker in the middle of an item notices that its parent is gone.
PARENT_CHECK_SECONDS = 1.0


def main(descriptor: int) -> int:
    """Serve the socket until the parent closes it; 0 then, 1 when the set-up was refused."""
    # As a script, this folder leads sys.path, where our file names would shadow others'.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".") != Path(__file__).parent]
    sys.path.append(str(Path(__file__).parents[3]))
    from exo.gpu.execution.frames import Frame, receive_frame, send_frame

    stream = socket.socket(fileno=descriptor)
    # A child that the user's code forks must not keep the connection open when we die.
    os.register_at_fork(after_in_child=stream.close)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    reporter = _Reporter(stream, send_frame, Frame.OUTCOMES)
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
            _work(reporter, function, pickled, origin)
            reporter.flush()
            send_frame(stream, Frame.IDLE, b"")


def _set_up(version: tuple[int, int], path: list[str], initializer: bytes | None) -> str | None:
    if version != sys.version_info[:2]:  # pickled functions hold byte code of one version
        asked, here = (".".join(map(str, one)) for one in (version, sys.version_info[:2]))
        return (
            f"{sys.executable} is Python {here}, and functions pickled by Python {asked} do not "
            f"run there: name an interpreter of Python {asked} for this runtime"
        )
    known = set(sys.path)
    sys.path[:0] = [entry for entry in path if entry not in known]
    if initializer is None:
        return None
    try:
        from exo.gpu.execution.main_namespace import load

        function, arguments = load(initializer)
        function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever the user's code raises is reported
        return f"the initializer failed:\n{traceback.format_exc()}"
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


def _follow(parent: int) -> None:
    """End this process group once its parent is gone: nobody will hear of its work."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.killpg(0, signal.SIGKILL)


class _Reporter:
    """Sends outcomes together, but holds none back for longer than :data:`REPORT_SECONDS`.

    A thread sees to that while the next item runs: the caller may be waiting for the last one.
    """

    def __init__(self, stream: socket.socket, send: Callable[..., None], kind: object) -> None:
        self._stream, self._send, self._kind = stream, send, kind
        self._outcomes: list[tuple[int, bool, float, float, bytes]] = []
        self._flushed = time.perf_counter()
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        threading.Thread(target=self._flush_late, name="exo-gpu-report", daemon=True).start()

    def add(self, outcome: tuple[int, bool, float, float, bytes]) -> None:
        with self._lock:
            self._outcomes.append(outcome)
        if time.perf_counter() - self._flushed > REPORT_SECONDS:
            self.flush()
        else:
            self._waiting.set()

    def flush(self) -> None:
        with self._lock:
            self._waiting.clear()
            if self._outcomes:
                self._send(self._stream, self._kind, pickle.dumps(self._outcomes))
                self._outcomes = []
            self._flushed = time.perf_counter()

    def _flush_late(self) -> None:
        while True:
            self._waiting.wait()
            time.sleep(REPORT_SECONDS)
            try:
                self.flush()
            except OSError:
                return  # the parent is gone; the main thread finds out by itself


def _work(reporter: _Reporter, function: Callable[..., Any], pickled: bytes, origin: float) -> None:
    from exo.gpu.execution.main_namespace import load

    for place, item in enumerate(pickle.loads(pickled)):
        started = time.perf_counter()
        try:
            succeeded, payload = True, pickle_result(function(load(item)))
        except BaseException as error:  # noqa: BLE001 - the item's own failure, sys.exit included
            succeeded, payload = False, pickle_error(error)
        ended = time.perf_counter()
        reporter.add((place, succeeded, origin + started, origin + ended, payload))


def pickle_result(value: object) -> bytes:
    """The bytes of a result; what pickle cannot name goes by value.

    Raises:
        NotTransferable: saying what could not be pickled.

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
        from exo.gpu.vocabulary.errors import NotTransferable

        text = f"the result, of type {type(value).__qualname__}, cannot be pickled: {problem}"
        raise NotTransferable(text) from None


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
    try:
        sys.exit(main(int(sys.argv[1])))
    except OSError:
        sys.exit(0)  # the parent is gone, and nobody reads any more
