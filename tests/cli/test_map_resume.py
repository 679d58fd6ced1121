"""``exo-gpu map --resume``: after whatever end, exactly the items without a recorded success."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from exo.gpu.execution.journal import read_journal

COUNTED = "echo {} >> ran; test {} -ne 4 || test -e mended"


def ran(folder):
    return sorted(map(int, (folder / "ran").read_text().split()))


def test_only_what_has_not_succeeded_runs_again(devices, exo_gpu, tmp_path):
    """Rule: a failed item runs again, a successful one never; the log goes on."""
    first = exo_gpu("map", "--joblog", "log", COUNTED, ":::", *"123456")
    assert first.returncode == 1
    (tmp_path / "mended").touch()
    (tmp_path / "ran").unlink()
    again = exo_gpu("map", "--joblog", "log", "--resume", COUNTED, ":::", *"123456")
    assert (again.returncode, ran(tmp_path)) == (0, [4])
    assert "5 items had succeeded before" in again.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == 1 + 6 + 1
    nothing = exo_gpu("map", "--joblog", "log", "--resume-failed", COUNTED, ":::", *"123456")
    assert (nothing.returncode, ran(tmp_path)) == (0, [4])


def test_after_a_kill_of_everything_the_rest_runs(devices, exo_gpu, command_line, tmp_path):
    """Rule: kill -9 of the parent and its items: every item has one recorded success in the end."""
    template = (
        "echo {} >> ran; test {} -ne 50 || { test -e again || { echo $$ > pid; sleep 600; }; }"
    )
    items = "".join(f"{number}\n" for number in range(100))
    words = command_line("map", "--joblog", "log", template)
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdin is not None
        child.stdin.write(items.encode())
        child.stdin.close()
        while not (pid := tmp_path / "pid").exists() or not pid.read_text().strip():
            assert child.poll() is None
        child.kill()
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    before = exo_gpu("jobs", "--json").stdout
    (job,) = json.loads(before)["jobs"]
    tally = read_journal(tmp_path / "log.journal")[0].tally
    succeeded = {item for item in range(100) if tally.has_succeeded(item)}
    assert (job["state"], job["succeeded"]) == ("interrupted", len(succeeded))
    assert succeeded <= set(range(50))
    assert len(succeeded) > 40  # what had ended and was not yet printed is all that may be missing
    (tmp_path / "again").touch()
    (tmp_path / "ran").unlink()
    resumed = exo_gpu("map", "--joblog", "log", "--resume", template, stdin=items)
    assert resumed.returncode == 0
    assert ran(tmp_path) == sorted(set(range(100)) - succeeded)
    story = json.loads(exo_gpu("jobs", "show", "last", "--json").stdout)
    assert (story["summary"]["succeeded"], story["summary"]["state"]) == (100, "done")
    assert 50 in story["named_again"]  # it had begun: its effects may have come twice
    assert set(story["named_again"]) == set(range(51)) - succeeded


def test_the_newest_job_of_this_command_is_found(devices, exo_gpu, tmp_path):
    """Rule: without a log, --resume goes on with the last job of the same command here, or a name."""
    nothing = exo_gpu("map", "--resume", COUNTED, ":::", "1")
    assert (nothing.returncode, "nothing to resume" in nothing.stderr) == (255, True)
    exo_gpu("map", "--name", "mine", COUNTED, ":::", *"345")
    (tmp_path / "ran").unlink()
    exo_gpu("map", "--resume", COUNTED, ":::", *"345")
    assert ran(tmp_path) == [4]
    exo_gpu("map", "--resume", "--name", "mine", COUNTED, ":::", *"345")
    assert ran(tmp_path) == [4, 4]
    other = exo_gpu("map", "--resume", "--name", "yours", COUNTED, ":::", *"345")
    assert other.returncode == 255
    dry = exo_gpu("map", "--resume", "--dry-run", COUNTED, ":::", *"345")
    assert dry.stdout.startswith("echo 4 ")
    assert dry.stdout.count("\n") == 1


def test_another_list_is_not_taken_for_the_one_that_began(devices, exo_gpu, tmp_path):
    """Rule: an item that is not the one recorded in its place runs, and that is said."""
    exo_gpu("map", "--joblog", "log", "echo {} >> ran", ":::", "1", "2", "3")
    (tmp_path / "ran").unlink()
    done = exo_gpu(
        "map", "--joblog", "log", "--resume", "echo {} >> ran", ":::", "1", "9", "3", "4"
    )
    assert ran(tmp_path) == [4, 9]
    assert "1 items are not those that the journal has" in done.stderr


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_last_record_that_was_cut_is_said_and_repaired(cut, devices, exo_gpu, tmp_path):
    """Rule: a half-written last record is cut off, named, and its item runs again."""
    exo_gpu("map", "--joblog", "log", "echo {} >> ran; kill -9 $PPID", ":::", "1")
    journal = tmp_path / "log.journal"
    with journal.open("ab") as file:
        file.write(b'0badc0de ["ended",0,"succeeded","","cuda:0",0,1,true'[:cut])
    with (tmp_path / "log").open("a") as log:
        log.write("2\t:\t17")
    (tmp_path / "ran").unlink()
    done = exo_gpu(
        "map", "--joblog", "log", "--resume", "echo {} >> ran; kill -9 $PPID", ":::", "1"
    )
    assert "was not written whole" in done.stderr
    assert (tmp_path / "ran").read_text() == "1\n"


def test_damage_in_the_middle_is_named_and_its_item_runs(devices, exo_gpu, tmp_path):
    """Rule: a damaged record is no success."""
    exo_gpu("map", "--joblog", "log", "echo {} >> ran", ":::", "1", "2", "3")
    journal = tmp_path / "log.journal"
    lines = journal.read_bytes().split(b"\n")
    place = next(at for at, line in enumerate(lines) if b'"ended",1,' in line)
    lines[place] = lines[place].replace(b"succeeded", b"succeedee")
    journal.write_bytes(b"\n".join(lines))
    (tmp_path / "ran").unlink()
    done = exo_gpu("map", "--joblog", "log", "--resume", "echo {} >> ran", ":::", "1", "2", "3")
    assert ran(tmp_path) == [2]
    assert f"damaged in line {place + 1}" in done.stderr


def test_a_log_that_is_not_of_this_command_is_left_alone(devices, exo_gpu, tmp_path):
    """Rule: another command's log, a table of nothing and a log without a journal are refused."""
    exo_gpu("map", "--joblog", "log", "echo {}", ":::", "1")
    other = exo_gpu("map", "--joblog", "log", "--resume", "touch {}", ":::", "started")
    assert (other.returncode, "another command" in other.stderr) == (255, True)
    (tmp_path / "foreign").write_text("a\tb\n1\t2\n" * 40)
    foreign = exo_gpu("map", "--joblog", "foreign", "--resume", "touch {}", ":::", "started")
    assert (foreign.returncode, "no journal beside it" in foreign.stderr) == (255, True)
    assert not (tmp_path / "started").exists()
    (tmp_path / "log").write_text("a\tb\n1\t2\n" * 40)
    broken = exo_gpu("map", "--joblog", "log", "--resume", "echo {}", ":::", "1")
    assert (broken.returncode, "no table of jobs" in broken.stderr) == (255, True)
    assert (tmp_path / "log").read_text().startswith("a\tb\n")


def test_two_processes_never_go_on_with_one_job(devices, exo_gpu, command_line, tmp_path):
    """Rule: while a job runs its journal is in use, for --resume as for a new start."""
    os.mkfifo(tmp_path / "gate")
    words = command_line(
        "map", "-j", "1", "--device", "cuda:0", "--joblog", "log", "echo up; cat {}", ":::", "gate"
    )
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE) as child:
        with (tmp_path / "gate").open("w"):
            for more in ([], ["--resume"]):
                second = exo_gpu(
                    "map",
                    "--device",
                    "rocm:0",
                    "--joblog",
                    "log",
                    *more,
                    "echo up; cat {}",
                    ":::",
                    "gate",
                )
                assert (second.returncode, "in use" in second.stderr) == (255, True)
            (job,) = json.loads(exo_gpu("jobs", "--json").stdout)["jobs"]
            assert job["state"] == "running"
        child.communicate()
    assert child.returncode == 0


def test_without_a_place_for_journals_work_goes_on(devices, exo_gpu, tmp_path):
    """Rule: a journal that nobody asked for and cannot be kept is said; one asked for stops us."""
    blocked = tmp_path / "a file"
    blocked.touch()
    jobs = str(blocked / "jobs")
    done = exo_gpu("map", "echo {}", ":::", "a", EXO_GPU_JOBS=jobs)
    assert (done.returncode, done.stdout) == (0, "a\n")
    assert "cannot be resumed" in done.stderr
    asked = exo_gpu("map", "--joblog", str(blocked / "log"), "touch {}", ":::", "started")
    assert asked.returncode == 255
    synced = exo_gpu("map", "--sync", "touch {}", ":::", "started", EXO_GPU_JOBS=jobs)
    assert synced.returncode == 255
    assert not Path(tmp_path / "started").exists()
    listed = exo_gpu("map", "--joblog", "log", "echo {}", ":::", "a", EXO_GPU_JOBS=jobs)
    assert (listed.returncode, "will not list this job" in listed.stderr) == (0, True)


def test_a_full_disk_below_the_journal_stops_the_run(devices, command_line, tmp_path):
    """Rule: what cannot be recorded is not begun: the run ends and says so."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        command_line("map", "--name", "n" * 97_000, "true {}"),
        input=b"x\n" * 500,
        cwd=tmp_path,
        capture_output=True,
        preexec_fn=limit,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 255
    assert b"cannot be written" in done.stderr


def test_a_synced_job_runs_the_same(devices, exo_gpu):
    """Rule: --sync changes nothing but when a record is safe."""
    assert exo_gpu("map", "-k", "--sync", "echo", ":::", "a", "b").stdout == "a\nb\n"
