"""Work and its journal joined: commands and Python maps, begun, gone on with, and told of."""

from __future__ import annotations

import os

import pytest

from exo.gpu.coordination.commands import CommandRun
from exo.gpu.coordination.job_recording import begin_job, record_map, resume_job
from exo.gpu.coordination.jobs import JobState, find_journal, list_jobs, story_of, tries_of
from exo.gpu.vocabulary.errors import JournalError, NoSuchJob
from exo.gpu.vocabulary.journal import ItemEnded, JobKind
from exo.gpu.vocabulary.request import Request


def chunk(recording, *items, failed=()):
    recording.chunk_ended(
        items, failed=failed, device_id="cuda:0", slot=0, started_at=1.0, ended_at=2.0
    )


def test_a_map_goes_on_with_what_has_no_success(tmp_path):
    """Rule: chunks name their items; who goes on knows which have succeeded and which have not."""
    path = tmp_path / "a.journal"
    first = record_map(os.environ, path, function="f", total=6)
    chunk(first, 0, 1, 2, failed=(1,))
    first.close()
    assert story_of(path).summary.state is JobState.INTERRUPTED
    again = record_map(os.environ, path, function="f", resume=True)
    assert [again.has_succeeded(item) for item in range(4)] == [True, False, True, False]
    chunk(again, 1, 3, 4, 5)
    again.finish(complete=True)
    (job,), problems = list_jobs(os.environ)
    assert (job.kind, job.succeeded, job.failed, job.left) == ("map", 6, 0, 0)
    assert (job.state, problems) == (JobState.DONE, [])
    assert len(list(tries_of(path))) == 2


def test_another_function_is_not_gone_on_with(tmp_path):
    """Rule: the journal of another function is refused, and left as it is."""
    path = tmp_path / "a.journal"
    record_map(os.environ, path, function="f").close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another command: 'f', not 'g'"):
        record_map(os.environ, path, function="g", resume=True)
    assert path.read_bytes() == before
    path.write_bytes(b"")
    with pytest.raises(JournalError, match="empty"):
        resume_job(path, {"": "f"})


def test_every_try_at_a_command_is_recorded(two_fakes, tmp_path):
    """Rule: a record for each try, the last one final with the status, and none for a withdrawn one."""
    from exo.gpu.scheduling.retry import RetryPolicy

    recording = begin_job(os.environ, kind=JobKind.COMMANDS, templates={"": "x"})
    commands = ["true", "exit 3", "kill -9 $$"]
    policy = RetryPolicy(retries=1, max_attempts=2)
    with CommandRun(commands, request=Request(), retry=policy, on_begin=recording.begun) as run:
        for done in run:
            recording.ended(done)
    recording.finish(complete=True)
    tries = [one for one in tries_of(recording.path) if isinstance(one, ItemEnded)]
    by_item = {item: [one for one in tries if one.item == item] for item in range(3)}
    assert [one.attempt for one in by_item[1]] == [1, 2]
    assert [one.final for one in by_item[1]] == [False, True]
    assert (by_item[1][-1].exit_status, by_item[1][-1].cause) == (3, "exit_status")
    assert (by_item[2][-1].signal, by_item[2][-1].exit_status) == (9, None)
    assert [one.succeeded for one in by_item[0]] == [True]
    summary = story_of(recording.path).summary
    assert (summary.succeeded, summary.failed, summary.started_again) == (1, 2, 2)


def test_what_cannot_be_recorded_is_not_begun(two_fakes, tmp_path):
    """Rule: an error of the journal ends the run, after what had begun; nothing starts without."""
    begun = []

    def on_begin(command):
        if command.index == 2:
            raise JournalError("no room")
        begun.append(command.index)

    commands = [f"touch {tmp_path}/{number}" for number in range(50)]
    ended = []
    with (
        pytest.raises(JournalError, match="no room"),
        CommandRun(commands, request=Request(), on_begin=on_begin) as run,
    ):
        ended.extend(done.index for done in run)
    assert sorted(ended) == sorted(begun)
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()) == sorted(
        begun
    )
    assert not (tmp_path / "2").exists()


def test_a_source_that_breaks_harms_nothing_that_had_begun(two_fakes):
    """Rule: the commands before the break end and are told of; then the error is raised."""

    def source():
        yield from ("echo 0", "echo 1", "echo 2")
        raise ValueError("the list broke off")

    seen = []
    with (
        pytest.raises(ValueError, match="broke off"),
        CommandRun(source(), request=Request()) as run,
    ):
        seen.extend(done.index for done in run)
    assert sorted(seen) == [0, 1, 2]


def test_no_job_by_that_name():
    """Rule: an unknown name is an error of its own."""
    with pytest.raises(NoSuchJob, match="nope"):
        find_journal(os.environ, "nope")
