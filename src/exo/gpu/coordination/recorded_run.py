"""A map with a journal: what is recorded as done is not run again, and all ends are recorded."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.coordination.map_items import Items, items_of
from exo.gpu.coordination.map_run import Ended, MapRun
from exo.gpu.scheduling.scheduler import UNKNOWN
from exo.gpu.vocabulary.errors import JournalError, NotTransferable
from exo.gpu.vocabulary.job import Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exo.gpu.coordination.items import Function, Job
    from exo.gpu.coordination.job_recording import JobRecording
    from exo.gpu.execution.successes import Successes

logger = logging.getLogger(__name__)


class RecordedRun(MapRun):
    """A map whose items are recorded as they end; where that fails, so does the map."""

    def __init__(
        self, recording: JobRecording, function: Function, items: Items, **options: Any
    ) -> None:
        """The recording is closed with the end of the last item; ``options`` are a run's."""
        super().__init__(function, items, **options)
        self._recording = recording
        self._door = threading.Lock()
        self._closed = False

    def succeeded(self, places: Sequence[int], run: Successes, lane: tuple[int, str]) -> None:
        """The items at these places ended well, in one go."""
        self._record(places, (), lane, run.started_at(0), run.ended_at(len(run) - 1))
        super().succeeded(places, run, lane)

    def ender(self, place: int) -> Callable[[Outcome, Job], None]:
        """What is told the end of an item that goes, or went, alone."""
        told = super().ender(place)

        def end(outcome: Outcome, job: Job) -> None:
            last = job.attempts[-1] if job.attempts else None
            lane = (last.slot, last.device_id) if last is not None else (-1, None)
            failed = () if outcome.ending is Ending.SUCCEEDED else (place,)
            self._record((place,), failed, lane, outcome.started_at, outcome.ended_at)
            told(outcome, job)

        return end

    def let_go(self) -> None:
        """Nobody will tell of what was cut and has not ended."""
        self._close(complete=False)

    def _not_sent(self, place: int, error: NotTransferable) -> None:
        now = time.time()
        self._record((place,), (place,), (-1, None), now, now)
        super()._not_sent(place, error)

    def _undone(self, places: Sequence[int], values: list[Any]) -> tuple[Sequence[int], list[Any]]:
        """Those that have no success; of the others the reader is told."""
        left: list[tuple[int, Any]] = []
        done: list[Ended] = []
        for place, value in zip(places, values, strict=True):
            if self._recording.has_succeeded(place):
                done.append(Ended(self, place, 1, None, skipped=True))
            else:
                left.append((place, value))
        if not done:
            return places, values
        self._put(done, 0)
        return [place for place, _ in left], [value for _, value in left]

    def _settle(self) -> None:
        with self._news:
            over = self.is_spent and not self._unended
            complete = not self._dropped
        if over:
            self._close(complete=complete)

    def _record(
        self,
        places: Sequence[int],
        failed: tuple[int, ...],
        lane: tuple[int, str | None],
        started_at: float,
        ended_at: float,
    ) -> None:
        with self._door:
            if self._closed:
                return
            try:
                self._recording.chunk_ended(
                    tuple(places),
                    failed=failed,
                    device_id=lane[1],
                    slot=lane[0],
                    started_at=started_at,
                    ended_at=ended_at,
                )
            except JournalError as error:
                self._closed, problem = True, error
                self._recording.close()
            else:
                return
        self.abandon(problem)

    def _close(self, *, complete: bool) -> None:
        with self._door:
            if self._closed:
                return
            self._closed = True
            try:
                self._recording.finish(complete=complete)
            except JournalError as error:  # what ended is recorded, all but that nothing follows
                logger.warning("%s", error)
                self._recording.close()


def begin_run(
    function: Function,
    iterables: Sequence[Iterable[Any]],
    *,
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> MapRun:
    """A run over these items, recorded where a ``journal`` is named; ``options`` are a run's.

    Raises:
        JournalError: when it cannot be written, is in use, or is that of another map.

    """
    items = items_of(iterables)
    options["is_single"] = len(iterables) == 1
    if journal is None:
        return MapRun(function, items, **options)
    from exo.gpu.coordination.job_recording import record_map

    recording = record_map(
        os.environ,
        Path(journal),
        function=function.name,
        total=None if items.rest == UNKNOWN else items.rest,
        resume=resume,
    )
    for remark in recording.remarks:
        logger.warning("%s", remark)
    return RecordedRun(recording, function, items, **options)
