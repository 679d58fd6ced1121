"""Which journal a run of ``map`` keeps, and which it goes on with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from exo.gpu.cli.main import complain
from exo.gpu.cli.map.joblog import HEADER, JOURNAL_SUFFIX
from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import JobKind, JobTally

if TYPE_CHECKING:
    from pathlib import Path

    from exo.gpu.coordination.job_recording import JobRecording


def journal_beside(joblog: Path) -> Path:
    """The journal that belongs to a table of ``--joblog``."""
    return joblog.with_name(joblog.name + JOURNAL_SUFFIX)


def open_recording(
    templates: dict[str, str],
    *,
    joblog: Path | None,
    resume: bool,
    name: str,
    sync: bool,
    **facts: Any,
) -> JobRecording | None:
    """Begin a journal, or go on with one; None where none can be kept and nobody asked for one.

    ``facts`` are what else the journal says of the job.

    Raises:
        JournalError: when the journal that was asked for cannot be used.

    """
    from exo.gpu.coordination.job_recording import begin_job, resume_job

    path = None if joblog is None else journal_beside(joblog)
    if resume:
        found = _to_resume(templates, joblog, name)
        if found is not None:
            recording = resume_job(found, templates, sync=sync)
            for remark in recording.remarks:
                complain(remark)
            return recording
    try:
        recording = begin_job(
            os.environ,
            kind=JobKind.COMMANDS,
            templates=templates,
            journal=path,
            name=name,
            sync=sync,
            **facts,
        )
    except JournalError as error:
        if path is not None or sync:
            raise
        complain(f"this job cannot be resumed: {error}")
        return None
    for remark in recording.remarks:
        complain(remark)
    return recording


def tally_to_resume(templates: dict[str, str], joblog: Path | None, name: str) -> JobTally | None:
    """What the journal says that a resumed run would go on with; changes nothing."""
    from exo.gpu.execution.journal import read_journal

    found = _to_resume(templates, joblog, name)
    return None if found is None else read_journal(found)[0].tally


def _to_resume(templates: dict[str, str], joblog: Path | None, name: str) -> Path | None:
    """The journal to go on with; None where the job has not begun yet."""
    if joblog is None:
        from exo.gpu.coordination.job_recording import find_job

        return find_job(os.environ, templates, name)
    path = journal_beside(joblog)
    if path.exists() and path.stat().st_size:
        return path
    if joblog.exists() and joblog.stat().st_size > len(HEADER):
        raise JournalError(
            f"--resume: {joblog} has no journal beside it ({path}), so what succeeded is not known"
        )
    return None
