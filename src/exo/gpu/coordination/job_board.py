"""The jobs of this user, looked at over and over: only what may have changed is read again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from exo.gpu.coordination.jobs import JobState, JobSummary, summary_of
from exo.gpu.execution.job_folder import jobs_folder, journals
from exo.gpu.vocabulary.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST_JOBS = 200
"""The newest jobs that are looked at; older ones are found by their id."""

LOOK_SECONDS = 2.0

# A long journal of a running job is read whole: in a tenth of the time at most.
_DEAR_SHARE = 10.0


class JobBoard:
    """The newest jobs in figures; a job that has ended is read once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._read: dict[Path, tuple[tuple[int, int], JobSummary | str]] = {}
        self._due = 0.0
        self._found: tuple[tuple[JobSummary, ...], tuple[str, ...]] = (), ()

    def look(self) -> tuple[tuple[JobSummary, ...], tuple[str, ...]]:
        """The newest jobs first, and what could not be read; the last answer where it is young."""
        began = time.monotonic()
        if began < self._due:
            return self._found
        paths = journals(jobs_folder(self._environ))[:MOST_JOBS]
        self._read = {path: self._look_at(path) for path in paths}
        found = [one for _, one in self._read.values()]
        jobs = {one.job_id: one for one in reversed(found) if isinstance(one, JobSummary)}
        self._found = (  # a journal that was copied is one job
            tuple(reversed(jobs.values())),
            tuple(one for one in found if isinstance(one, str)),
        )
        self._due = began + max(LOOK_SECONDS, _DEAR_SHARE * (time.monotonic() - began))
        return self._found

    def _look_at(self, path: Path) -> tuple[tuple[int, int], JobSummary | str]:
        try:
            facts = path.stat()
            mark = facts.st_mtime_ns, facts.st_size
            known = self._read.get(path)
            if known is not None and known[0] == mark and not _may_end_unseen(known[1]):
                return known
            return mark, summary_of(path)
        except JournalError as error:
            return (0, 0), str(error)
        except OSError as error:
            return (0, 0), f"the journal {path} cannot be read: {error.strerror}"


def _may_end_unseen(known: JobSummary | str) -> bool:
    """A job that is killed writes nothing more."""
    return isinstance(known, str) or known.state is JobState.RUNNING
