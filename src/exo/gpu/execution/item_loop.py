"""In the child: runs the items of a piece of work one by one, and reports every ending.

Endings travel as a list of (:data:`RAN`, clock's origin, moments, flat batch of results) for a run
of items that succeeded, (:data:`FAILED`, started, ended, error) for one that did not, and
(:data:`RECALLED`, how many of the last items were never begun and will not be). Standard library
only.
"""

from __future__ import annotations

import pickle
import threading
import time
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

from exo.gpu.execution.frames import Frame, send_frame
from exo.gpu.execution.packing import (
    OUT_OF_BAND_BYTES,
    PLAIN_TYPES,
    flatten,
    pack,
    pack_all,
    unpack_lazily,
)
from exo.gpu.vocabulary.parcel import Batch, Parcel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

# Outcomes are held back this long at most, so that short items share a frame.
REPORT_SECONDS = 0.02

# A text beyond this goes as a parcel of its own.
_SHORT_CHARACTERS = 1024

RAN, FAILED, RECALLED = 0, 1, 2


class ItemLoop:
    """The items that wait, and the endings that the parent was not told yet.

    The main thread runs items. A second one reports what has ended, so that the caller need not
    wait for the next item; the thread that listens to the parent may take back what waits.
    """

    def __init__(
        self,
        stream: socket.socket,
        pack_result: Callable[[Any], Parcel],
        pickle_error: Callable[[BaseException], bytes],
    ) -> None:
        self._stream = stream
        self._pack_result = pack_result
        self._pickle_error = pickle_error
        self._origin = time.time() - time.perf_counter()
        self._waiting: tuple[int | None, deque[Any]] = (None, deque())
        self._results: list[Any] = []
        self._moments: list[float] = []
        """When the first result's item began, and when each of them ended: always one more."""
        self._endings: list[Any] = []
        self._beside: list[Any] = []
        self._lock = threading.Lock()
        self._busy = threading.Event()
        threading.Thread(target=self._report_late, name="exo-gpu-report", daemon=True).start()

    def run(self, work: int, function: Callable[[Any], Any], batch: Batch, desk: Any) -> None:
        """Run the items; each one's own failure, ``sys.exit`` included, is its ending."""
        todo = deque(unpack_lazily(batch))
        self._moments = moments = [time.perf_counter()]
        self._waiting = work, todo
        self._busy.set()
        clock, results, make = time.perf_counter, self._results, batch.plain is None
        place = -1
        while todo:
            try:
                item = todo.popleft()
            except IndexError:  # it was recalled this very moment
                break
            place += 1
            try:
                desk.place = place
                if desk.cancelled and place in desk.cancelled:
                    raise KeyboardInterrupt("cancelled")
                result = function(item() if make else item)
                desk.place = -1
                kind: type[Any] = type(result)  # pyright: ignore[reportUnknownVariableType]
                if kind not in PLAIN_TYPES or (kind is str and len(result) > _SHORT_CHARACTERS):
                    # At once: the next item may change what it refers to.
                    result = self._pack_result(result)
            except BaseException as error:  # noqa: BLE001 - the item's own, sys.exit included
                desk.place = -1
                self._failed(error)
                continue
            moments.append(clock())
            results.append(result)
            if type(result) is Parcel and result.size_bytes > OUT_OF_BAND_BYTES:
                self.report()
            item = result = None  # what is large is let go of now, not after the next item
        self._busy.clear()

    def report(self, kind: Frame = Frame.OUTCOMES) -> None:
        """Send what has ended."""
        with self._lock:
            self._report(kind)

    def recall(self, work: int) -> None:
        """Give back the items of this work that have not begun."""
        with self._lock:
            number, todo = self._waiting
            count = 0
            while number == work and todo:
                try:
                    todo.pop()
                except IndexError:  # the main thread was faster
                    break
                count += 1
            if count:
                self._gather()
                self._endings.append((RECALLED, count))
                self._report(Frame.OUTCOMES)

    def _report(self, kind: Frame) -> None:
        self._gather()
        if not self._endings and kind is Frame.OUTCOMES:
            return
        endings, beside = self._endings, self._beside
        self._endings, self._beside = [], []
        send_frame(self._stream, kind, pickle.dumps(endings, 5), beside)

    def _gather(self) -> None:
        """Make a run of the results so far; the main thread may append to them meanwhile."""
        count = len(self._results)
        if not count:
            return
        results, moments = self._results[:count], self._moments[: count + 1]
        del self._results[:count], self._moments[:count]
        if Parcel in set(map(type, results)):
            parcels = (one if type(one) is Parcel else pack(one) for one in results)
            batch = Batch(count, parcels=tuple(parcels))
        else:
            batch = pack_all(results)
        flat, beside = flatten(batch)
        self._endings.append((RAN, self._origin, array("d", moments).tobytes(), flat))
        self._beside += beside

    def _failed(self, error: BaseException) -> None:
        ended = time.perf_counter()
        payload = self._pickle_error(error)
        with self._lock:
            self._gather()
            started = self._moments[0]
            self._moments[:] = [ended]
            moments = self._origin + started, self._origin + ended
            self._endings.append((FAILED, *moments, payload))

    def _report_late(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(REPORT_SECONDS)
            try:
                self.report()
            except OSError:
                return  # the parent is gone; the main thread finds out by itself
