"""``exo-gpu jobs``: what journals tell of jobs, for people, for programs, and as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from exo.gpu.cli.jobs_view import bars_of
from exo.gpu.vocabulary.journal import ChunkEnded, ItemEnded


def test_without_jobs_there_is_nothing_to_list(devices, exo_gpu):
    """Rule: an empty list is said, and is an empty list for programs."""
    done = exo_gpu("jobs")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no jobs yet" in done.stderr
    assert json.loads(exo_gpu("jobs", "--json").stdout) == {"jobs": []}


def test_the_newest_job_stands_first(devices, exo_gpu):
    """Rule: a line for each job with what became of its items; programs get all of it."""
    exo_gpu("map", "--name", "the first", "true {}", ":::", "1", "2")
    exo_gpu("map", "--halt", "soon,fail=1", "test {} = 1", ":::", "1", "2", *"3" * 20)
    jobs = json.loads(exo_gpu("jobs", "--json").stdout)["jobs"]
    assert sorted((job["name"], job["state"]) for job in jobs) == [
        ("", "interrupted"),
        ("the first", "done"),
    ]
    by_name = {job["name"]: job for job in jobs}
    assert by_name["the first"]["succeeded"] == 2
    assert by_name["the first"]["devices"]["cuda:0"]["tries"] == 2
    assert by_name[""]["left"] == 22 - by_name[""]["succeeded"] - by_name[""]["failed"] > 0
    table = exo_gpu("jobs").stdout.splitlines()
    assert table[0].split() == ["ID", "STATE", "DONE", "FAILED", "LEFT", "COMMAND"]
    assert {line.split(maxsplit=5)[5] for line in table[1:]} == {"the first", "test {} = 1"}
    assert all(len(line) <= 80 for line in table)


def test_a_page_for_one_job(devices, exo_gpu, tmp_path):
    """Rule: by its id, a part of it, its name, its log or 'last', a job tells all its journal has."""
    exo_gpu("map", "--name", "mine", "--joblog", "log", "test {} = 1", ":::", "1", "2")
    exo_gpu("map", "--joblog", "log", "--resume", "test {} = 1", ":::", "1", "2")
    job_id = json.loads(exo_gpu("jobs", "--json").stdout)["jobs"][0]["job_id"]
    pages = {
        exo_gpu("jobs", "show", name).stdout
        for name in (job_id, job_id[-4:], "mine", "log", "log.journal", "last")
    }
    assert len(pages) == 1
    (page,) = pages
    assert "1 done, 1 failed, 0 left" in page
    assert "begun again item 2:" in page
    assert "resumed" in page
    assert next(line for line in page.splitlines() if line.startswith("cuda:0 ")).split()[1] == "3"
    story = json.loads(exo_gpu("jobs", "show", "mine", "--json").stdout)
    assert story["summary"]["job_id"] == job_id
    assert len(story["resumed_at"]) == 1


def test_a_job_that_is_not_there(devices, exo_gpu, tmp_path):
    """Rule: an unknown name is one line and status 1; a file that is no journal as well."""
    (tmp_path / "a file").write_text("nothing\n")
    for name, message in (("nope", "no job 'nope'"), ("a file", "no journal")):
        done = exo_gpu("jobs", "show", name)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_name_that_means_two_jobs_is_not_guessed_at(devices, exo_gpu):
    """Rule: a part of an id must be of one job only."""
    for _ in range(2):
        exo_gpu("map", "true {}", ":::", "1")
    done = exo_gpu("jobs", "show", "20")
    assert done.returncode == 1
    assert "more than one job" in done.stderr


def test_a_damaged_journal_does_not_hide_the_others(devices, exo_gpu):
    """Rule: what cannot be read is said, the rest is listed; damage within is told on its page."""
    exo_gpu("map", "true {}", ":::", "1", "2")
    folder = Path(os.environ["EXO_GPU_JOBS"])
    (folder / "20000101-000000-0000.journal").write_text("nonsense\n")
    listed = exo_gpu("jobs")
    assert len(listed.stdout.splitlines()) == 2
    assert "no journal of a job" in listed.stderr
    (good,) = (path for path in folder.iterdir() if not path.name.startswith("2000"))
    lines = good.read_bytes().splitlines(keepends=True)
    good.write_bytes(b"".join((*lines[:2], b"damage\n", *lines[3:], b"half a li")))
    page = exo_gpu("jobs", "show", "last").stdout
    assert "line 3 of the journal" in page
    assert "last 9 bytes" in page


def test_a_picture_of_who_did_what(devices, exo_gpu, tmp_path):
    """Rule: a job of any kind becomes a picture; an ending that is none is a usage error."""
    pytest.importorskip("matplotlib")
    exo_gpu("map", "test {} = 1", ":::", "1", "2")
    assert exo_gpu("jobs", "show", "last", "--plot", "gantt.png").returncode == 0
    assert (tmp_path / "gantt.png").read_bytes().startswith(b"\x89PNG")
    assert exo_gpu("jobs", "show", "last", "--plot", "gantt.nothing").returncode == 2


def test_what_cannot_be_told_apart_is_one_bar():
    """Rule: a million short items on a lane make no more bars than a picture has columns."""

    def item(number, ending="succeeded", slot=0):
        begin = number * 0.01
        return ItemEnded(number, ending, "", "cuda:0", slot, 1, True, begin, begin + 0.009)

    lanes = bars_of((item(number) for number in range(100_000)), 1000.0)
    assert [len(bars) for bars in lanes["cuda:0", 0].values()] == [1]
    chunk = ChunkEnded(((0, 9),), (3,), None, 1, 0.0, 500.0)
    mixed = bars_of([item(0), item(50_000, "failed"), item(99_000), chunk], 1000.0)
    assert {ending: len(bars) for ending, bars in mixed["cuda:0", 0].items()} == {
        "succeeded": 2,
        "failed": 1,
    }
    assert mixed["-", 1]["failed"][0].end == 500.0


def test_failures_are_told_with_device_tries_and_reason(devices, exo_gpu, tmp_path):
    """Rule: whoever looks in the morning sees which items failed, where, how often and why."""
    exo_gpu(
        "map",
        "--retries",
        "1",
        "test {} -ne 2 || { echo 'no such file' >&2; exit 3; }",
        ":::",
        *"123",
    )
    page = exo_gpu("jobs", "show", "last").stdout
    (line,) = (line for line in page.splitlines() if line.startswith("2 "))
    assert line.split()[2] == "2"
    assert "exited with status 3" in line
    told = json.loads(exo_gpu("jobs", "show", "last", "--json").stdout)
    (failure,) = told["failures"]
    assert (failure["item"], failure["attempt"], failure["exit_status"]) == (1, 2, 3)
    assert failure["cause"] == "exit_status"
