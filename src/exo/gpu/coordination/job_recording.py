"""Joins work with its journal: what began, what ended, and what need not be done again."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.execution.job_folder import enrol, jobs_folder, journals, new_job_id, read_ends
from exo.gpu.execution.journal import Journal
from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import (
    ChunkEnded,
    ItemBegun,
    ItemEnded,
    JobBegun,
    JobEnded,
    JobKind,
    JobResumed,
    JobTally,
    Record,
    item_ranges,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.coordination.commands import Command, CommandDone

logger = logging.getLogger(__name__)

# A program may print anything before it ends; a record is no place for all of it.
LONGEST_REASON = 500


class JobRecording:
    """A journal that is being written, and what it says so far; safe from several threads."""

    def __init__(self, journal: Journal, tally: JobTally, remarks: tuple[str, ...] = ()) -> None:
        self.remarks = remarks
        """What had to be repaired, and what is missing, for people."""
        self.tally = tally
        self._journal = journal
        self._door = threading.Lock()

    @property
    def job_id(self) -> str:
        """The job's name among others."""
        assert self.tally.begun is not None
        return self.tally.begun.job_id

    @property
    def path(self) -> Path:
        """Where its journal lies."""
        return self._journal.path

    def has_succeeded(self, item: int, digest: int | None = None) -> bool:
        """Whether the item's success is recorded, so that it need not be done again."""
        with self._door:
            return self.tally.has_succeeded(item, digest)

    def begun(self, command: Command) -> None:
        """A command's first process is about to start.

        Raises:
            JournalError: when that cannot be recorded.

        """
        self._write(ItemBegun(command.index, time.time()))

    def ended(self, done: CommandDone) -> None:
        """A command has ended and its output is where it belongs.

        Raises:
            JournalError: when that cannot be recorded.

        """
        for record in attempt_records(done):
            self._write(record)

    def chunk_ended(
        self,
        items: tuple[int, ...],
        *,
        failed: tuple[int, ...] = (),
        device_id: str | None,
        slot: int,
        started_at: float,
        ended_at: float,
    ) -> None:
        """Items of a Python map were done in one go; those of ``failed`` raised.

        Raises:
            JournalError: when that cannot be recorded.

        """
        self._write(ChunkEnded(item_ranges(items), failed, device_id, slot, started_at, ended_at))

    def finish(self, *, complete: bool) -> None:
        """The run has come to its end: say what the job came to, and let go of the journal."""
        tally = self.tally
        self._write(
            JobEnded(
                at=time.time(),
                complete=complete,
                succeeded=tally.succeeded,
                failed=tally.failed,
                started_again=tally.started_again,
                devices=tally.devices,
            )
        )
        self.close()

    def close(self) -> None:
        """Let go of the journal, as it is; harmless twice."""
        self._journal.close()

    def _write(self, record: Record) -> None:
        with self._door:
            self._journal.write(record)
            self.tally.add(record)


def attempt_records(done: CommandDone) -> list[ItemEnded]:
    """A record for each try at a command; of those before the last, only what is known."""
    records: list[ItemEnded] = []
    outcome = done.outcome
    for number, attempt in enumerate(done.attempts, start=1):
        final = number == len(done.attempts)
        status = outcome.exit_status if final else None
        records.append(
            ItemEnded(
                item=done.index,
                ending=(outcome if final else attempt).ending.value,
                cause=attempt.cause or "",
                device_id=attempt.device_id,
                slot=attempt.slot,
                attempt=number,
                final=final,
                started_at=attempt.started_at,
                ended_at=attempt.ended_at,
                exit_status=status if status is not None and status >= 0 else None,
                signal=-status if status is not None and status < 0 else None,
                digest=done.digest,
                reason=attempt.reason[:LONGEST_REASON],
            )
        )
    return records


def begin_job(
    environ: Mapping[str, str],
    *,
    kind: JobKind,
    templates: dict[str, str],
    journal: Path | None = None,
    name: str = "",
    total: int | None = None,
    request: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    sync: bool = False,
) -> JobRecording:
    """Begin a job's journal: in the user's folder of jobs, or at ``journal`` and linked there.

    Raises:
        JournalError: when it cannot be written, or is that of a job that is running.

    """
    now = time.time()
    job_id = new_job_id(now)
    header = JobBegun(
        job_id=job_id,
        kind=kind,
        templates=templates,
        name=name,
        directory=str(Path.cwd()),
        total=total,
        started_at=now,
        pid=os.getpid(),
        request=request or {},
        options=options or {},
    )
    folder = jobs_folder(environ)
    opened = Journal(enrol(folder, job_id, None) if journal is None else journal, sync=sync)
    try:
        opened.begin(header)
    except BaseException:
        opened.close()
        raise
    remarks: tuple[str, ...] = ()
    if journal is not None:
        try:
            enrol(folder, job_id, journal)
        except JournalError as error:
            remarks = (f"'exo-gpu jobs' will not list this job: {error}",)
    tally = JobTally()
    tally.add(header)
    return JobRecording(opened, tally, remarks)


def record_map(
    environ: Mapping[str, str],
    journal: Path,
    *,
    function: str,
    total: int | None = None,
    resume: bool = False,
    sync: bool = False,
) -> JobRecording:
    """The journal of a Python map: begun anew, or with ``resume`` gone on with where it is there.

    ``function`` is the name by which the map is told from others. The map calls
    :meth:`JobRecording.chunk_ended` for each chunk and :meth:`JobRecording.finish` at its end; what
    ``JobRecording.has_succeeded`` knows need not be done again.

    Raises:
        JournalError: when it cannot be written, is in use, or is that of another function.

    """
    if resume and journal.exists() and journal.stat().st_size:
        return resume_job(journal, {"": function}, total=total, sync=sync)
    return begin_job(
        environ,
        kind=JobKind.MAP,
        templates={"": function},
        journal=journal,
        total=total,
        sync=sync,
    )


def resume_job(
    path: Path, templates: dict[str, str], *, total: int | None = None, sync: bool = False
) -> JobRecording:
    """Go on with a job's journal; what was damaged in it is repaired and said in ``remarks``.

    Raises:
        JournalError: when it is in use, no journal, or that of another command or, where a
            ``total`` is given, of another number of items.

    """
    opened = Journal(path, sync=sync)
    try:
        found = opened.recover()
        begun = found.tally.begun
        if begun is None:
            raise JournalError(f"{path} is empty: there is nothing to go on with")
        if begun.templates != templates:
            theirs, ours = (" / ".join(one.values()) for one in (begun.templates, templates))
            raise JournalError(
                f"{path} is the journal of another command: {theirs!r}, not {ours!r}"
            )
        if None not in (total, begun.total) and begun.total != total:
            raise JournalError(
                f"{path} is the journal of {begun.total} items, and there are {total} now: which "
                "of them are done is not known"
            )
        remarks: list[str] = []
        if found.tail_bytes:
            remarks.append(
                f"the last record of {path} was not written whole: its {found.tail_bytes} bytes "
                "are cut off"
            )
        if found.damaged_lines:
            lines = ", ".join(map(str, found.damaged_lines[:10]))
            remarks.append(
                f"{path} is damaged in line {lines}: items that ended there are done again"
            )
        resumed = JobResumed(time.time(), os.getpid())
        opened.write(resumed)
        found.tally.add(resumed)
    except BaseException:
        opened.close()
        raise
    return JobRecording(opened, found.tally, tuple(remarks))


def find_job(environ: Mapping[str, str], templates: dict[str, str], name: str = "") -> Path:
    """The journal of the newest job of these templates that was begun in this directory.

    With ``name``, of the newest of that name.

    Raises:
        JournalError: when there is none.

    """
    folder = jobs_folder(environ)
    here = str(Path.cwd())
    for path in journals(folder):
        try:
            begun = read_ends(path).begun
        except JournalError as error:
            logger.debug("passed over: %s", error)
            continue
        meant = begun.name == name if name else begun.directory == here
        if meant and begun.kind is JobKind.COMMANDS and begun.templates == templates:
            return path.resolve()
    where = f"named {name!r}" if name else "begun in this directory"
    raise JournalError(f"there is nothing to resume: no job of this command {where} in {folder}")
