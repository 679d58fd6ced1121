"""One run of ``map``: items become commands, and what they came to is printed and recorded."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.cli.context import left_out_line
from exo.gpu.cli.machines import open_node
from exo.gpu.cli.main import complain
from exo.gpu.cli.map.joblog import Joblog
from exo.gpu.cli.map.keeping import open_recording
from exo.gpu.cli.map.output import Printer, in_order
from exo.gpu.cli.map.templates import command_of, digest_of
from exo.gpu.cli.progress import Progress
from exo.gpu.coordination.commands import CommandRun
from exo.gpu.scheduling.retry import RetryPolicy
from exo.gpu.vocabulary.job import Ending

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exo.gpu.cli.map.halt import Halt
    from exo.gpu.cli.map.sources import Items
    from exo.gpu.cli.map.templates import Templates
    from exo.gpu.coordination.commands import Command, CommandDone, CommandRun
    from exo.gpu.coordination.job_recording import JobRecording
    from exo.gpu.vocabulary.request import Request


class Settings(NamedTuple):
    """How a run of ``map`` goes about it."""

    slots: int | None
    keep_order: bool
    as_json: bool
    tag: bool
    halt: Halt | None
    joblog: Path | None
    resume: bool
    retries: int
    grow: bool
    timeout_seconds: float | None
    eta: bool
    name: str
    sync: bool
    wait_seconds: float | None
    cluster: bool


class MapJob:
    """Runs the items of one command line; what is left of them where it goes on with a job."""

    def __init__(self, templates: Templates, items: Items, settings: Settings) -> None:
        self._templates = templates
        self._items = items
        self._settings = settings
        self._recording: JobRecording | None = None
        self._skipped = 0
        self._changed = 0
        self._halted = False
        self._progress = Progress(sys.stderr, total=items.count())

    def run(self, requests: tuple[Request, ...]) -> int:
        """Run them; how many failed.

        Raises:
            NeverAvailable: when no device here can ever satisfy the requests.
            NotNow: when one could, but not at the moment.
            JournalError: when the journal that was asked for cannot be used.

        """
        settings = self._settings
        with ExitStack() as stack:
            # A node of this machine alone is the run's own to open and close.
            node = stack.enter_context(open_node(cluster=True)) if settings.cluster else None
            run = stack.enter_context(
                CommandRun(
                    self._commands(),
                    request=requests,
                    node=node,
                    slots=settings.slots,
                    wait_seconds=settings.wait_seconds,
                    retry=RetryPolicy(retries=settings.retries, grow=settings.grow),
                    on_retry=self._tell_retry,
                    timeout_seconds=settings.timeout_seconds,
                    on_begin=self._begun,
                )
            )
            self._tell_left_out(run, requests)
            joblog = self._open(stack, requests)
            if settings.eta:
                from exo.gpu.cli.map.bars import Bars

                self._progress.paint_with(Bars(tuple(one.device_id for one in run.devices)))
            with self._progress:
                self._take(run, joblog)
            self._finish()
        return self._progress.failed

    def _open(self, stack: ExitStack, requests: tuple[Request, ...]) -> Joblog | None:
        """Open the journal and the table beside it, once the devices are held."""
        settings = self._settings
        recording = open_recording(
            self._templates.texts,
            joblog=settings.joblog,
            resume=settings.resume,
            name=settings.name,
            sync=settings.sync,
            total=self._progress.total,
            request=_asked(requests[0]),
            options={"retries": settings.retries, "timeout_seconds": settings.timeout_seconds},
        )
        if recording is not None:
            stack.callback(recording.close)
            self._recording = recording
        if settings.joblog is None:
            return None
        return stack.enter_context(Joblog(settings.joblog, resume=settings.resume))

    def _commands(self) -> Iterator[Command]:
        """The items as commands, without those whose success is recorded."""
        recorded = self._recording if self._settings.resume else None
        for index, arguments in enumerate(self._items):
            if recorded is not None and recorded.has_succeeded(index):
                if recorded.has_succeeded(index, digest_of(arguments)):
                    self._skipped += 1
                    self._progress.skip()
                    continue
                self._changed += 1
            yield command_of(self._templates, index, arguments, labelled=self._settings.tag)

    def _begun(self, command: Command) -> None:
        if self._recording is not None:
            self._recording.begun(command)

    def _tell_retry(self, index: int, words: str) -> None:
        with self._progress.aside():
            complain(f"item {index + 1} is tried again: {words}")

    def _take(self, run: CommandRun, joblog: Joblog | None) -> None:
        """Print and record what ends, in this order: what is recorded has been printed."""
        printer = Printer(as_json=self._settings.as_json, tag=self._settings.tag)
        ended = self._ended(run)
        for done in in_order(ended) if self._settings.keep_order else ended:
            with self._progress.aside():
                output_bytes = printer.show(done)
            if joblog is not None:
                joblog.write(done, output_bytes=output_bytes)
            if self._recording is not None:
                self._recording.ended(done)

    def _ended(self, run: CommandRun) -> Iterator[CommandDone]:
        """What ends, as it does: counted, and halted at, whoever has to wait for their turn."""
        for done in run:
            yield done
            succeeded = done.outcome.ending is Ending.SUCCEEDED
            self._progress.count(done.index, done.device_id, succeeded=succeeded)
            if self._stops(run, done):
                return

    def _stops(self, run: CommandRun, done: CommandDone) -> bool:
        """Whether nothing more is looked at; where only nothing begins any more, it is not."""
        halt, progress = self._settings.halt, self._progress
        if not done.attempts:
            self._halted = True  # no device was left for it: it can be resumed
        if halt is None or self._halted:
            return False
        succeeded = progress.done - progress.failed
        if not halt.reached(failed=progress.failed, succeeded=succeeded, total=progress.total):
            return False
        self._halted = True
        if halt.now:
            run.close()
        else:
            run.wind_down()
        return halt.now

    def _finish(self) -> None:
        progress = self._progress
        if self._recording is not None:
            self._recording.finish(complete=not self._halted)
        if self._skipped:
            complain(f"{self._skipped} items had succeeded before: they were left alone")
        if self._changed:
            complain(
                f"{self._changed} items are not those that the journal has in their places: "
                "they were run"
            )
        if self._halted and self._settings.halt is not None:
            complain(f"halted after {progress.done} items; --resume goes on")
        if progress.failed:
            complain(_failures(progress))

    def _tell_left_out(self, run: CommandRun, requests: tuple[Request, ...]) -> None:
        text = left_out_line(run.left_out)
        if text:
            complain(text)
        used = {lane.device.runtime for lane in run.lanes}
        idle = [one.runtime for one in requests if one.runtime and one.runtime not in used]
        if idle:
            complain(f"no device of {', '.join(idle)} is free: its template is not used")


def _failures(progress: Progress) -> str:
    """Which items failed, counted from 1 as people and ``sed -n`` do."""
    names = ", ".join(str(index + 1) for index in progress.failed_items)
    more = " and more" if progress.failed > len(progress.failed_items) else ""
    return f"{progress.failed} of {progress.done} items failed: {names}{more}"


def _asked(request: Request) -> dict[str, Any]:
    """What a request says beyond the defaults."""
    usual = type(request)().to_dict()
    return {name: value for name, value in request.to_dict().items() if value != usual[name]}
