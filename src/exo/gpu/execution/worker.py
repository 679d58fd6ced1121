"""Inside the child: takes functions and items from its socket, and reports every ending.

Run by path, ``python worker.py FD FD PARENT``, in the environment that pins it. It needs the
standard library only; cloudpickle is loaded by the first function that was pickled by value. Work
comes on the first socket; a thread answers on the second one, whatever the work is at.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.execution.item_loop import ItemLoop
    from exo.gpu.vocabulary.parcel import Batch, Parcel

# Both sides keep this many functions and forget the one used longest ago, so that they agree.
FUNCTIONS_KEPT = 8

# Linux, prctl.h: the signal that the kernel sends once the parent has died.
PR_SET_PDEATHSIG = 1


def main(descriptor: int, second: int, parent: int) -> int:
    """Serve the socket until the parent closes it; 0 then, 1 when the set-up was refused."""
    # As a script, this folder leads sys.path, where our file names would shadow others'.
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is slow
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path.append(here[: -len("/exo/gpu/execution")])
    from exo.gpu.execution.frames import Frame, receive_with_blobs, send_frame
    from exo.gpu.execution.item_loop import ItemLoop
    from exo.gpu.execution.packing import raise_up

    stream, side = socket.socket(fileno=descriptor), socket.socket(fileno=second)
    # A child that the user's code forks must not keep the connections open when we die.
    os.register_at_fork(after_in_child=lambda: (stream.close(), side.close()))
    desk = Desk()
    signal.signal(signal.SIGINT, desk.interrupt)
    loop = ItemLoop(stream, _pack_result, pickle_error)
    listener = threading.Thread(target=_listen, args=(side, desk, loop, parent), daemon=True)
    listener.start()
    functions: OrderedDict[int, Callable[..., Any]] = OrderedDict()
    prints_aside = False
    while True:
        frame = receive_with_blobs(stream)
        if frame is None:
            return 0
        kind, payload, blobs = frame
        if kind is Frame.SETUP:
            *setup, prints_aside = pickle.loads(payload)
            problem = _set_up(*setup)
            if problem is not None:
                send_frame(stream, Frame.REFUSED, pickle.dumps(problem))
                return 1
            send_frame(stream, Frame.READY, pickle.dumps(os.getpid()))
        elif kind is Frame.FUNCTION:
            number, flat = pickle.loads(payload)
            functions[number] = _load_function(raise_up(flat, iter(blobs)))
            while len(functions) > FUNCTIONS_KEPT:
                functions.popitem(last=False)
        else:
            work, number, is_single, flat, stream_credits = pickle.loads(payload)
            desk.work = work
            function = _function_of(number, functions, is_single=is_single)
            if stream_credits:
                send_frame(stream, Frame.ACKNOWLEDGED, b"")
                function = _streaming(function, desk, stream, stream_credits)
            batch = raise_up(flat, iter(blobs))
            frame = payload = blobs = flat = None  # the items alone hold their memory
            loop.run(work, function, batch, desk)
            batch = None
            desk.close()
            if prints_aside:
                _flush_prints()
            loop.report(Frame.IDLE)


class Desk:
    """What this process is at, for the thread that answers the parent and for the main one."""

    def __init__(self) -> None:
        self.work: int | None = None
        self.place = -1
        """The item that runs; -1 between two."""
        self.cancelled: set[int] = set()
        self.credits: threading.Semaphore | None = None
        self._interrupting = False
        self._shielded = False
        self._main = threading.main_thread()

    def cancel(self, work: int, place: int) -> None:
        """Stop an item that runs, and do not begin one that waits."""
        if work != self.work:
            return
        self.cancelled.add(place)
        if place == self.place:
            self._interrupting = True
            # A real signal, so that a sleep or a read ends too.
            signal.pthread_kill(self._main.ident or 0, signal.SIGINT)

    def interrupt(self, *_: object) -> None:
        """Raise in the item that was cancelled; anywhere else the signal came too late."""
        if self._interrupting and not self._shielded and self.place in self.cancelled:
            self._interrupting = False
            raise KeyboardInterrupt("cancelled")

    def shielded(self, send: Callable[..., None], *arguments: object) -> None:
        """Send whole: an interrupt in the middle of a frame waits for its end."""
        self._shielded = True
        try:
            send(*arguments)
        finally:
            self._shielded = False
        self.interrupt()

    def allow(self, work: int, count: int) -> None:
        """Let the stream be so many chunks more ahead."""
        if work == self.work and self.credits is not None:
            self.credits.release(count)

    def close(self) -> None:
        """The work is done."""
        self.work, self.credits, self._interrupting = None, None, False
        if self.cancelled:
            self.cancelled = set()


def _listen(side: socket.socket, desk: Desk, loop: ItemLoop, parent: int) -> None:
    """Answer the parent, and end with it: nobody will hear of this work."""
    from exo.gpu.execution.frames import Frame, receive_frame, send_frame

    _die_with(parent)
    while (frame := receive_frame(side)) is not None:
        kind, payload = frame
        if kind is Frame.PING:
            send_frame(side, Frame.PONG, pickle.dumps(desk.work))
        elif kind is Frame.CANCEL:
            desk.cancel(*pickle.loads(payload))
        elif kind is Frame.RECALL:
            loop.recall(pickle.loads(payload))
        elif kind is Frame.CREDIT:
            desk.allow(*pickle.loads(payload))
    os.killpg(0, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, also where Python does not run any more."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # a libc without it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os.killpg(0, signal.SIGKILL)


def _streaming(
    function: Callable[..., Any], desk: Desk, stream: socket.socket, stream_credits: int
) -> Callable[..., Any]:
    """The function, sending what it yields as it comes, never too far ahead; its result is None.

    One that returns something else than an iterator has that as its result.
    """
    from exo.gpu.execution.frames import Frame, send_frame

    desk.credits = room = threading.Semaphore(stream_credits)

    def run(call: Any) -> Any:
        chunks = function(call)
        if not hasattr(chunks, "__next__"):
            return chunks
        try:
            for chunk in chunks:
                pickled = pickle_result(chunk, "a chunk")
                room.acquire()
                desk.shielded(send_frame, stream, Frame.CHUNK, pickled)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return None

    return run


def _flush_prints() -> None:
    for printer in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user's code may have put anything there
            printer.flush()


def _set_up(
    version: tuple[int, int], path: list[str], directory: str, initializer: bytes | None
) -> str | None:
    if version != sys.version_info[:2]:  # pickled functions hold byte code of one version
        asked, here = (".".join(map(str, one)) for one in (version, sys.version_info[:2]))
        return (
            f"{sys.executable} is Python {here}, and functions pickled by Python {asked} do not "
            f"run there: name an interpreter of Python {asked} for this runtime"
        )
    if directory:
        try:
            os.chdir(directory)
        except OSError as error:
            return f"there is no working directory {directory}: {error}"
    known = set(sys.path)
    sys.path[:0] = [entry for entry in path if entry not in known]
    if initializer is None:
        return None
    try:
        from exo.gpu.execution.main_namespace import load

        function, arguments = load(initializer)
        function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever the user's code raises is reported
        import traceback

        return f"the initializer failed:\n{traceback.format_exc()}"
    return None


def _apply(call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
    function, arguments, keywords = call
    return function(*arguments, **keywords)


def _load_function(batch: Batch) -> Callable[..., Any]:
    from exo.gpu.execution.packing import unpack

    try:
        return unpack(batch.parcels[0])
    except BaseException as error:  # noqa: BLE001 - every item of this function reports it
        problem = error

        def refuse(*_: object) -> None:
            raise problem

        return refuse


def _function_of(
    number: int | None, functions: OrderedDict[int, Callable[..., Any]], *, is_single: bool
) -> Callable[[Any], Any]:
    """What is called with each item of a work; without a number, items bring their own."""
    if number is None:
        return _apply
    functions.move_to_end(number)
    return functions[number] if is_single else _spreading(functions[number])


def _spreading(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    return call


def _pack_result(value: object) -> Parcel:
    """A result as a parcel; what pickle cannot name goes by value.

    Raises:
        NotTransferable: saying what could not be pickled.

    """
    from exo.gpu.execution.packing import pack
    from exo.gpu.vocabulary.parcel import Parcel

    try:
        return pack(value)
    except Exception as problem:  # noqa: BLE001 - pickle raises whatever an object's reducer does
        return Parcel((_pickle_by_value(value, "the result", problem),))


def pickle_result(value: object, what: str = "the result") -> bytes:
    """The bytes of a result; what pickle cannot name goes by value.

    Raises:
        NotTransferable: saying what could not be pickled.

    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as problem:  # noqa: BLE001 - pickle raises whatever an object's reducer does
        return _pickle_by_value(value, what, problem)


def _pickle_by_value(value: object, what: str, problem: Exception) -> bytes:
    try:
        import cloudpickle

        return cloudpickle.dumps(value, protocol=5)
    except Exception:  # noqa: BLE001 - the first problem says more
        from exo.gpu.vocabulary.errors import NotTransferable

        text = f"{what}, of type {type(value).__qualname__}, cannot be pickled: {problem}"
        raise NotTransferable(text) from None


def pickle_error(error: BaseException) -> bytes:
    """(pickled exception or None, its class and text, traceback, names of its classes) as bytes."""
    import traceback  # loaded with the first failure

    text = "".join(traceback.format_exception(error))
    summary = "".join(traceback.format_exception_only(error)).strip()
    try:
        pickled = pickle_result(error)
    except Exception:  # noqa: BLE001 - then the text alone travels
        pickled = None
    names = tuple(f"{one.__module__}.{one.__qualname__}" for one in type(error).__mro__[:-2])
    return pickle.dumps((pickled, summary, text, names))


if __name__ == "__main__":
    try:
        sys.exit(main(*map(int, sys.argv[1:])))
    except OSError:
        sys.exit(0)  # the parent is gone, and nobody reads any more
