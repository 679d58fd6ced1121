"""Jobs over devices that are all alike: disciplines of the line beside each other."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Mapping, Sequence
from enum import Enum

import msgspec

from exo.gpu.scheduling.counted_line import CountedLine
from exo.gpu.scheduling.expected_length import FIRST_SECONDS, ExpectedLength
from exo.gpu.scheduling.job_queue import LOOK_AHEAD, place_of
from exo.gpu.simulation.events import EventQueue
from exo.gpu.simulation.jobs import Job
from exo.gpu.simulation.outcome import JobOutcome, Summary, summarize
from exo.gpu.vocabulary.errors import UnknownName

# Slurm's default for how many it tries to let pass (bf_max_job_test).
BACKFILL_DEPTH = 500

# When one that runs is first taken note of; again whenever it has run for twice as long.
FIRST_NOTE_SECONDS = 60.0

# Of those that wait, so many of its group on either side hear of one that ended.
HEARERS = 30


class Length(Enum):
    """What is known of how long a job will take."""

    UNUSED = "unused"
    TRUE = "true"
    TOLD = "told"
    EXPECTED = "expected"


class Discipline(msgspec.Struct, frozen=True):
    """An order of the line, and who may pass."""

    length: Length
    look_ahead: int
    order: str
    """``arrival``, ``length``, or ``line``: that of :mod:`~exo.gpu.scheduling.job_queue`."""

    def place(self, job: Job, seconds: float) -> float:
        """Where a job stands when it is taken to need so long."""
        if self.order == "arrival":
            return job.arrived_seconds
        if self.order == "length":
            return seconds
        return place_of(job.arrived_seconds, 0, seconds * job.gpus)


DISCIPLINES: Mapping[str, Discipline] = {
    "fifo": Discipline(Length.UNUSED, 0, "arrival"),
    "fifo-backfill": Discipline(Length.TRUE, BACKFILL_DEPTH, "arrival"),
    "shortest-true": Discipline(Length.TRUE, 0, "length"),
    "shortest-backfill": Discipline(Length.TRUE, BACKFILL_DEPTH, "length"),
    "shortest-predicted": Discipline(Length.EXPECTED, LOOK_AHEAD, "length"),
    "line": Discipline(Length.TOLD, LOOK_AHEAD, "line"),
    "line-predicted": Discipline(Length.EXPECTED, LOOK_AHEAD, "line"),
}
"""First come first served; the same with EASY backfilling by true lengths; shortest first, alone,
with backfilling, and by predicted lengths; ours, by what each said that it would take (the true
length where the trace has no such column), and by predicted lengths."""


def discipline_named(name: str) -> Discipline:
    """The discipline of that name.

    Raises:
        UnknownName: with all that are known, and the near spelling.

    """
    found = DISCIPLINES.get(name)
    if found is None:
        raise UnknownName("policy", name, DISCIPLINES)
    return found


def replay(jobs: Sequence[Job], devices: int, discipline: str, seed: int = 0) -> Summary:
    """Run the jobs on so many devices; who asks for more than there are is refused.

    Nothing is drawn by lot: the seed is only noted.

    Raises:
        UnknownName: for a discipline that is not known.

    """
    run = Replay(jobs, devices, discipline_named(discipline))
    outcomes = run.run()
    held = sum(job.gpus * job.run_seconds for job in jobs if job.gpus <= devices)
    return summarize(discipline, seed, outcomes, devices=devices, held_device_seconds=held)


class _Note(msgspec.Struct, frozen=True):
    """A look at a job that runs, after so long."""

    number: int
    for_seconds: float


class _End(msgspec.Struct, frozen=True):
    number: int


class _Arrival(msgspec.Struct, frozen=True):
    number: int


class Replay:
    """One run; jobs are known by their number in order of arrival."""

    def __init__(self, jobs: Sequence[Job], devices: int, discipline: Discipline) -> None:
        self._jobs = sorted(jobs, key=lambda job: job.arrived_seconds)
        self._discipline = discipline
        self._line = CountedLine(devices, look_ahead=discipline.look_ahead)
        self._events: EventQueue[_Note | _End | _Arrival] = EventQueue()
        self._lengths = ExpectedLength()
        self._waiting: dict[Hashable, list[int]] = {}
        self._began: dict[int, float] = {}
        self._ended: dict[int, float] = {}

    def run(self) -> list[JobOutcome]:
        """What became of each job, in order of arrival."""
        for number, job in enumerate(self._jobs):
            if job.gpus <= self._line.devices:
                self._events.plan(job.arrived_seconds, _Arrival(number))
        while events := self._events.next_moment():
            for event in events:
                self._happen(event)
            for number in self._line.turn(self._events.now_seconds):
                self._begin(number)
        return [self._outcome(number, job) for number, job in enumerate(self._jobs)]

    def _happen(self, event: _Note | _End | _Arrival) -> None:
        number = event.number
        job = self._jobs[number]
        if isinstance(event, _Arrival):
            if self._learns:
                self._waiting.setdefault(_group(job), []).append(number)
            self._join(number)
        elif isinstance(event, _End):
            self._line.end(number)
            self._ended[number] = self._events.now_seconds
            if self._learns:
                group, arrived = _group(job), job.arrived_seconds
                heard = self._lengths.ended(group, number, arrived, job.run_seconds)
                self._tell(number, heard)
        elif number not in self._ended:
            group, arrived = _group(job), job.arrived_seconds
            seconds = event.for_seconds
            heard = self._lengths.still_running(group, number, arrived, seconds)
            self._tell(number, heard)
            self._note(number, 2 * seconds)

    @property
    def _learns(self) -> bool:
        return self._discipline.length is Length.EXPECTED

    def _join(self, number: int) -> None:
        job, discipline = self._jobs[number], self._discipline
        if discipline.length is Length.TRUE:
            seconds = job.run_seconds
        elif discipline.length is Length.TOLD:
            told = job.expected_seconds
            seconds = job.run_seconds if told is None else told
        elif discipline.length is Length.EXPECTED:
            arrived = job.arrived_seconds
            seconds = self._lengths.expected_seconds(_group(job), number, arrived)
        else:
            seconds = FIRST_SECONDS
        self._line.join(number, job.gpus, discipline.place(job, seconds), seconds)

    def _begin(self, number: int) -> None:
        job, now = self._jobs[number], self._events.now_seconds
        self._began[number] = now
        self._events.plan(now + job.run_seconds, _End(number))
        if self._learns:
            waiting = self._waiting[_group(job)]
            del waiting[bisect.bisect_left(waiting, number)]
            self._note(number, FIRST_NOTE_SECONDS)

    def _note(self, number: int, for_seconds: float) -> None:
        """Look at it then, while it still runs: what nobody could see yet is not looked at."""
        if for_seconds < self._jobs[number].run_seconds:
            self._events.plan(self._began[number] + for_seconds, _Note(number, for_seconds))

    def _tell(self, number: int, heard: tuple[int, int]) -> None:
        """Those of its group that came at about its time stand in the line anew."""
        waiting = self._waiting[_group(self._jobs[number])]
        place = bisect.bisect_left(waiting, number)
        first = max(bisect.bisect_left(waiting, heard[0]), place - HEARERS)
        last = min(bisect.bisect_right(waiting, heard[1]), place + HEARERS)
        for neighbour in waiting[first:last]:
            self._join(neighbour)

    def _outcome(self, number: int, job: Job) -> JobOutcome:
        too_many = job.gpus > self._line.devices
        return JobOutcome(
            name=job.name,
            gpus=job.gpus,
            arrived_seconds=job.arrived_seconds,
            began_seconds=self._began.get(number),
            ended_seconds=self._ended.get(number),
            starts=int(number in self._began),
            refused=f"{job.gpus} of {self._line.devices} GPUs" if too_many else "",
        )


def _group(job: Job) -> Hashable:
    return (job.group, job.gpus)
