"""``exo-gpu map`` with GNU parallel's habits, from the outside: lists, tags, halts, logs, templates."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"


@pytest.fixture
def two_runtimes(script):
    """One NVIDIA and one AMD card, each visible to its own commands only."""
    cards = [("cuda:0", "NVIDIA", "cuda", "GPU-1"), ("rocm:0", "AMD", "rocm", "GPU-2")]
    return script(
        *(
            {
                "device_id": device_id,
                "name": "a card",
                "vendor": vendor,
                "backend": "fake",
                "runtime": runtime,
                "hardware_id": hardware_id,
                "memory_bytes": 2**33,
            }
            for device_id, vendor, runtime, hardware_id in cards
        )
    )


ON_CUDA = 'test "$EXO_GPU_FAKE_VISIBLE" = GPU-1 && echo {device} {}'
ON_ROCM = 'test "$EXO_GPU_FAKE_VISIBLE" = GPU-2 && echo {device} {}'


def test_a_template_for_each_runtime_uses_both(two_runtimes, exo_gpu, tmp_path):
    """Rule: each item runs once, on whichever device is free, by the template of its runtime."""
    # Each waits until the other has begun too, so that both devices have to take part.
    meet = "touch {device}; while ! test -e cuda:0 || ! test -e rocm:0; do sleep 0.01; done; "
    both = exo_gpu(
        "map", "--on", "cuda", meet + ON_CUDA, "--on", "rocm", meet + ON_ROCM, stdin="1\n2\n3\n4\n"
    )
    assert both.returncode == 0, both.stderr
    assert sorted(line.split()[1] for line in both.stdout.splitlines()) == ["1", "2", "3", "4"]
    assert {line.split()[0] for line in both.stdout.splitlines()} == {"cuda:0", "rocm:0"}
    assert both.stderr == ""


def test_one_template_keeps_to_one_runtime(two_runtimes, exo_gpu):
    """Rule: without --on a map has no failure from another runtime; --on takes the one named."""
    default = exo_gpu("map", ON_CUDA, stdin="1\n" * 20)
    assert default.returncode == 0
    rocm = exo_gpu("map", "--on", "rocm", ON_ROCM, stdin="1\n" * 5)
    assert (rocm.returncode, rocm.stdout) == (0, "rocm:0 1\n" * 5)


def test_a_runtime_that_is_not_here_leaves_the_others_to_work(two_runtimes, exo_gpu):
    """Rule: a template without a device is said, and the items run elsewhere; none at all is 69."""
    some = exo_gpu("map", "--on", "xpu", "false", "--on", "rocm", "echo", ":::", "a")
    assert (some.returncode, some.stdout) == (0, "a\n")
    assert "no device of xpu is free" in some.stderr
    assert exo_gpu("map", "--on", "xpu", "a", "--on", "metal", "b", ":::", "a").returncode == 69


def test_lists_and_replacement_strings_together(devices, exo_gpu):
    """Rule: several lists, their replacement strings and numbers, in order."""
    done = exo_gpu("map", "-k", "echo {#}: {1}-{2} {1.}", ":::", "a.x", "b.y", ":::", "1", "2")
    assert done.stdout == "1: a.x-1 a\n2: a.x-2 a\n3: b.y-1 b\n4: b.y-2 b\n"


def test_slots_of_a_device_are_numbered(devices, exo_gpu):
    """Rule: -j is the number of items a device has at once, {%} the slot that an item is in."""
    done = exo_gpu("map", "-j", "3", "echo {%}", stdin="\n" * 30)
    assert set(done.stdout.splitlines()) <= {"1", "2", "3"}


def test_items_end_in_nul(devices, exo_gpu):
    """Rule: with -0 standard input is cut at NUL."""
    done = exo_gpu("map", "-0", "-k", "printf '[%s]'", stdin="a\nb\0c\0")
    assert done.stdout == "[a\nb][c]"


def test_lines_of_a_file_are_items(devices, exo_gpu, tmp_path):
    """Rule: :::: reads a file; one that is missing is named before anything runs."""
    (tmp_path / "list").write_text("x\ny\n")
    assert exo_gpu("map", "-k", "echo", "::::", "list").stdout == "x\ny\n"
    missing = exo_gpu("map", "touch", "::::", "list", "nothing-here")
    assert (missing.returncode, "nothing-here" in missing.stderr) == (255, True)
    assert not (tmp_path / "x").exists()


def test_a_tag_stands_before_every_line(devices, exo_gpu):
    """Rule: with --tag each line of both streams says whose it is."""
    done = exo_gpu("map", "-k", "--tag", "echo {}; echo 2; echo no >&2", ":::", "a", "b c")
    assert done.stdout == "a\ta\na\t2\nb c\tb c\nb c\t2\n"
    assert done.stderr.endswith("a\tno\nb c\tno\n")


def test_a_dry_run_starts_nothing(devices, exo_gpu, tmp_path):
    """Rule: the commands are printed as they would run, those of a device as they are."""
    done = exo_gpu("map", "--dry-run", "touch {} {device}", ":::", "a b", "c")
    assert (done.returncode, done.stdout) == (0, "touch 'a b' {device}\ntouch c {device}\n")
    both = exo_gpu("map", "--dry-run", "--on", "cuda", "A", "--on", "cpu", "B", ":::", "1")
    assert both.stdout == "A 1  # cuda\nB 1  # cpu\n"
    assert not (tmp_path / "c").exists()


def test_the_joblog_tells_status_and_signal(devices, exo_gpu, tmp_path):
    """Rule: GNU parallel's columns: Exitval is the status, Signal what killed it, Receive bytes."""
    exo_gpu(
        "map", "-k", "--joblog", "log", "echo 12345; sh -c {}", ":::", "exit 3", "kill -9 $PPID"
    )
    head, *lines = (tmp_path / "log").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert head == HEADER
    assert [(row[0], row[8]) for row in rows] == [
        ("1", "echo 12345; sh -c 'exit 3'"),
        ("2", "echo 12345; sh -c 'kill -9 $PPID'"),
    ]
    assert [row[5:8] for row in rows] == [["6", "3", "0"], ["6", "0", "9"]]
    assert all(row[1] == "cuda:0" and float(row[3]) >= 0 for row in rows)


def test_the_issue_of_97(devices, exo_gpu):
    """Rule: the status is how many failed, with the log on."""
    items = "".join(f"{number}\n" for number in range(1, 1001))
    done = exo_gpu("map", "--joblog", "j.log", "test $(( {} % 97 )) -ne 0", stdin=items)
    assert done.returncode == 10


def test_halt_soon_begins_no_more(devices, exo_gpu):
    """Rule: after the failure what runs comes to its end, and little else begins."""
    done = exo_gpu(
        "map",
        "--halt",
        "soon,fail=1",
        "echo {}; test {} -ne 3",
        stdin="".join(f"{n}\n" for n in range(1, 200)),
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[:3] == ["1", "2", "3"]
    assert len(done.stdout.splitlines()) < 20
    assert "halted" in done.stderr


def test_halt_now_ends_what_runs(devices, exo_gpu, tmp_path):
    """Rule: a failure ends the items beside it at once."""
    template = "if test {} = bad; then while ! test -e begun; do sleep 0.01; done; false; else touch begun; sleep 600; fi"
    done = exo_gpu("map", "-j", "2", "--halt", "now,fail=1", template, ":::", "long", "bad", "long")
    assert done.returncode == 1


def test_who_waits_for_their_turn_is_halted_at_all_the_same(devices, exo_gpu):
    """Rule: --keep-order puts off what is printed, not the halt, and what ended is printed then."""
    template = "if test {} = long; then touch begun; exec sleep 600; fi; while ! test -e begun; do sleep 0.01; done; echo {}; false"
    done = exo_gpu("map", "-k", "-j", "2", "--halt", "now,fail=1", template, ":::", "long", "bad")
    assert (done.returncode, done.stdout) == (1, "bad\n")


def test_a_source_that_never_ends_is_left_when_halted(devices, command_line):
    """Rule: a halt does not wait for the next line of a pipe that stays open."""
    words = command_line("map", "--halt", "soon,fail=1", "false")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"a\n")
        child.stdin.flush()
        assert child.wait() == 1
        child.stdin.close()


def test_a_failed_item_is_tried_again(devices, exo_gpu, tmp_path):
    """Rule: --retries tries a failed item again, a successful one never; only the last try shows."""
    template = "echo x >> {}.tries; echo $(wc -l < {}.tries); test $(wc -l < {}.tries) -ge 3"
    done = exo_gpu("map", "-k", "--retries", "2", template, ":::", "a", "b")
    assert (done.returncode, done.stdout.split()) == (0, ["3", "3"])
    given_up = exo_gpu("map", "--retries", "1", template, ":::", "c")
    assert given_up.returncode == 1
    assert (tmp_path / "c.tries").read_text() == "x\nx\n"


def test_an_item_that_takes_too_long_is_ended(devices, exo_gpu, tmp_path):
    """Rule: after --timeout the item and all it started are ended, and it has failed."""
    done = exo_gpu(
        "map",
        "--timeout",
        "0.2s",
        "--joblog",
        "log",
        "echo begun; sleep 600 & sleep {}",
        ":::",
        "600",
    )
    assert done.returncode == 1
    assert "took longer than 0.2 s" in done.stderr
    assert (tmp_path / "log").read_text().splitlines()[1].split("\t")[6] == "-1"
    quick = exo_gpu("map", "--timeout", "100s", "echo {}", ":::", "a")
    assert (quick.returncode, quick.stdout) == (0, "a\n")


def test_a_large_output_comes_whole(devices, exo_gpu):
    """Rule: what is too much to hold is printed whole too, tagged and in order."""
    done = exo_gpu("map", "-j", "2", "-k", "seq {}", ":::", "400000", "3", "400000")
    assert done.stdout == "".join(
        "".join(f"{n}\n" for n in range(1, last + 1)) for last in (400000, 3, 400000)
    )
    as_json = exo_gpu("map", "--json", "seq {}", ":::", "400000")
    assert json.loads(as_json.stdout)["stdout"].count("\n") == 400000


def test_bars_say_who_did_what_at_the_end_of_a_terminal(devices, command_line, tmp_path):
    """Rule: --eta draws a line for each device and one for all on a terminal, and takes it away."""
    import fcntl
    import pty
    import struct
    import termios

    gate = tmp_path / "gate"
    os.mkfifo(gate)
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = command_line(
        "map", "--eta", "--device", "cuda:0", "cat {}", ":::", "/dev/null", str(gate)
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=terminal) as child:
        os.close(terminal)
        seen = b""
        while b"1/2 done" not in seen or b"s left" not in seen:
            seen += os.read(main_end, 1024)
        assert b"cuda:0" in seen
        gate.write_text("through\n")
        child.communicate()
        while not seen.endswith(b"\x1b[K"):
            seen += os.read(main_end, 1024)
    os.close(main_end)
    assert child.returncode == 0


def test_a_source_that_cannot_be_read_is_our_failure(devices, exo_gpu, tmp_path):
    """Rule: what cannot be read is one line and 255."""
    done = exo_gpu("map", "echo", "::::", str(tmp_path))
    assert done.returncode == 255
    assert done.stderr == f"exo-gpu: {str(tmp_path)!r} cannot be read: Is a directory\n"
