"""Maps with a journal: each item's success is recorded once, and what has one is not run again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import functions
import pytest

import exo.gpu as gpu
from exo.gpu.coordination.executor import GPUExecutor
from exo.gpu.coordination.jobs import JobState, list_jobs, story_of, tries_of
from exo.gpu.coordination.map_call import map_items
from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import ChunkEnded

WAIT_SECONDS = 60


def successes(journal):
    """Every item whose success is recorded, as often as it is."""
    return [
        item
        for record in tries_of(journal)
        if isinstance(record, ChunkEnded)
        for first, last in record.items
        for item in range(first, last + 1)
        if item not in record.failed
    ]


@pytest.mark.parametrize("items", [range(1000), None], ids=["range", "iterator"])
def test_every_success_is_recorded_once_with_where_and_when(two_fakes, tmp_path, items):
    """Rule: one record for each chunk; at the end the job is done, with all of its items."""
    journal, before = tmp_path / "a.journal", time.time()
    source = iter(range(1000)) if items is None else items
    assert map_items(functions.double, source, journal=journal) == [2 * n for n in range(1000)]
    assert sorted(successes(journal)) == list(range(1000))
    chunks = [record for record in tries_of(journal) if isinstance(record, ChunkEnded)]
    assert 1 < len(chunks) < 1000
    for chunk in chunks:
        assert chunk.device_id in {"cuda:0", "cuda:1"}
        assert before <= chunk.started_at <= chunk.ended_at <= time.time()
    (job,), _ = list_jobs(os.environ)
    assert (job.state, job.succeeded, job.failed) == (JobState.DONE, 1000, 0)
    assert job.templates == {"": "functions.double"}


def test_what_was_done_before_is_not_done_again(two_fakes, tmp_path):
    """Rule: a second run does what failed; what succeeded keeps its place among the results."""
    journal = tmp_path / "a.journal"
    items = [(str(tmp_path / f"{number}"), number) for number in range(6)]
    with GPUExecutor() as executor:
        first = executor.stream(fail_until_marked, items, journal=journal)
        with pytest.raises(ValueError, match="no mark"):
            list(first)
    assert story_of(journal).summary.state is JobState.INTERRUPTED
    done = set(successes(journal))
    for path, _ in items:
        Path(path).write_text("")
    again = map_items(fail_until_marked, items, journal=journal, resume=True)
    assert again == [gpu.DONE_BEFORE if number in done else number for number in range(6)]
    assert sorted(successes(journal)) == list(range(6))
    assert map_items(fail_until_marked, items, journal=journal, resume=True) == 6 * [
        gpu.DONE_BEFORE
    ]
    assert story_of(journal).summary.state is JobState.DONE
    with GPUExecutor() as executor:
        assert list(executor.stream(fail_until_marked, items, journal=journal, resume=True)) == []


def fail_until_marked(path_and_number):
    path, number = path_and_number
    if number % 2 and not Path(path).exists():
        raise ValueError("no mark")
    return number


def test_a_million_items_that_are_done_are_passed_over(two_fakes, tmp_path):
    """Rule: what is done costs neither a recursion nor a worker's time, also from an iterator."""
    journal = tmp_path / "a.journal"
    count = 200_000
    map_items(functions.double, range(count), journal=journal)
    with GPUExecutor() as executor:
        results = executor.map(functions.double, range(count), journal=journal, resume=True)
        assert all(one is gpu.DONE_BEFORE for one in results)
    with GPUExecutor() as executor:
        again = executor.map(
            functions.double, (n for n in range(count + 10)), journal=journal, resume=True
        )
        assert list(again)[count - 1 :] == [gpu.DONE_BEFORE, *range(2 * count, 2 * count + 20, 2)]


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import exo.gpu as gpu
from functions import leave_trace
if __name__ == "__main__":
    folder = {traces!r}
    items = [(folder, number) for number in range(3000)]
    done = gpu.map(leave_trace, items, journal={journal!r}, resume=True)
    print(sum(one is gpu.DONE_BEFORE for one in done))
"""


def test_after_a_kill_exactly_the_items_without_a_success_run(two_fakes, tmp_path):
    """Rule: the journal outlives SIGKILL; resumed, each item ends with one recorded success."""
    traces, journal = tmp_path / "traces", tmp_path / "a.journal"
    traces.mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.format(
            folder=str(Path(functions.__file__).parent), traces=str(traces), journal=str(journal)
        )
    )
    for _ in range(2):
        process = subprocess.Popen([sys.executable, str(program)])
        here = len(list(traces.iterdir()))
        while len(list(traces.iterdir())) < here + 300 and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    recorded = successes(journal)
    assert len(recorded) == len(set(recorded))
    runs_before = {path.name: path.read_text().count("run") for path in traces.iterdir()}
    ended = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert ended.stdout == f"{len(recorded)}\n", ended.stderr
    assert sorted(successes(journal)) == list(range(3000))
    for number in recorded:
        assert (traces / str(number)).read_text().count("run") == runs_before[str(number)]
    assert story_of(journal).summary.state is JobState.DONE


def test_a_death_in_the_middle_of_a_chunk_is_recorded_item_by_item(two_fakes, tmp_path):
    """Rule: whatever died, was tried again or could not be sent, each item has one success."""
    journal = tmp_path / "a.journal"
    marks = [str(tmp_path / f"mark{number}") for number in range(20)]
    assert len(map_items(functions.vanish_once, marks, journal=journal)) == 20
    assert sorted(successes(journal)) == list(range(20))


def test_an_item_that_cannot_be_sent_is_recorded_as_failed(two_fakes, tmp_path):
    """Rule: it fails for itself, and the job goes on with the others."""
    journal = tmp_path / "a.journal"
    with GPUExecutor() as executor:
        results = executor.map(
            functions.double, [1, 2, (n for n in ()), 4], journal=journal, chunksize=1
        )
        assert [next(results), next(results)] == [2, 4]
        with pytest.raises(gpu.ExoGpuError):
            next(results)
    failed = [item for record in tries_of(journal) for item in record.failed]
    assert failed == [2]
    assert set(successes(journal)) >= {0, 1}


def test_a_map_that_is_left_is_no_job_that_is_done(two_fakes, tmp_path):
    """Rule: with the reader gone, what runs is recorded, and the job was stopped before its end."""
    journal = tmp_path / "a.journal"
    with GPUExecutor() as executor:
        results = executor.map(functions.slowly, range(10_000), journal=journal)
        next(results)
        results.close()
    summary = story_of(journal).summary
    assert summary.state is JobState.INTERRUPTED
    assert 0 < summary.succeeded < 10_000


def test_other_journals_are_refused_before_anything_runs(two_fakes, tmp_path):
    """Rule: one of another function, of other items or in use is named, and left as it is."""
    journal = tmp_path / "a.journal"
    map_items(functions.double, range(10), journal=journal)
    before = journal.read_bytes()
    with GPUExecutor() as executor:
        with pytest.raises(JournalError, match="another"):
            executor.map(functions.slowly, range(10), journal=journal, resume=True)
        with pytest.raises(JournalError, match="10 items, and there are 11"):
            executor.map(functions.double, range(11), journal=journal, resume=True)
        with pytest.raises(JournalError, match="no journal can be kept"):
            executor.map(functions.double, range(11), journal=tmp_path / "no" / "journal")
        assert journal.read_bytes() == before
        running = executor.map(functions.slowly, range(50), journal=journal)
        with pytest.raises(JournalError, match="in use"):
            executor.map(functions.slowly, range(50), journal=journal, resume=True)
        assert len(list(running)) == 50


FULL = """
import resource
import sys
sys.path.insert(0, {folder!r})
import functions
import exo.gpu as gpu
from exo.gpu.vocabulary.errors import JournalError
if __name__ == "__main__":
    with gpu.GPUExecutor() as executor:
        executor.start(60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            list(executor.map(functions.slowly, range(500), journal={journal!r}, chunksize=1))
        except JournalError as error:
            print(error)
        print(list(executor.map(functions.double, range(3))))
"""


def test_without_a_journal_that_can_be_written_the_map_ends(two_fakes, tmp_path):
    """Rule: what cannot be recorded is an error for the reader; the executor goes on."""
    journal = tmp_path / "a.journal"
    folder = str(Path(functions.__file__).parent)
    program = FULL.format(folder=folder, journal=str(journal))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    problem, after = ended.stdout.splitlines()
    assert problem.startswith(f"the journal {journal} cannot be written: "), ended.stderr
    assert after == "[0, 2, 4]"
    assert 0 < len(successes(journal)) < 500
    with GPUExecutor() as executor, pytest.raises(JournalError, match="/dev/full"):
        executor.map(functions.double, range(100), journal="/dev/full")
