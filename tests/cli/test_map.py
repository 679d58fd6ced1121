"""``exo-gpu map``: every item once, quoted, streamed; the status counts what failed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.cli.map.output import in_order
from exo.gpu.cli.map.replacements import Template
from exo.gpu.coordination.commands import CommandDone
from exo.gpu.vocabulary.job import Ending, Outcome

HOSTILE = ["a b", "it's", '"', "$(echo no)", "`echo no`", "\\", "-n", "*", "ü", "; exit 9", "{}"]


def test_two_hundred_lines_give_two_hundred_results(devices, exo_gpu):
    """Rule: the example of the documentation: each item once, put in for every {}."""
    done = exo_gpu("map", "echo {} $(( {} * {} ))", stdin="".join(f"{n}\n" for n in range(200)))
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == sorted(f"{n} {n * n}" for n in range(200))


def test_items_are_quoted_for_the_shell(devices, exo_gpu):
    """Rule: whatever an item is, the command gets it as one word, as it is."""
    done = exo_gpu("map", "-k", "printf '%s\\n' {}", ":::", *HOSTILE)
    assert done.returncode == 0
    assert done.stdout.splitlines() == HOSTILE
    from_stdin = exo_gpu("map", "-k", "printf '%s\\n'", stdin="\n".join(HOSTILE))
    assert from_stdin.stdout == done.stdout


@pytest.mark.parametrize(
    ("stdin", "items"),
    [
        ("", []),
        ("\n", [""]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\nb", ["a", "b"]),
        (" a \r\n", [" a \r"]),
        ("\udcff\udc80\n", ["\udcff\udc80"]),
    ],
)
def test_a_line_is_an_item(stdin, items, devices, exo_gpu):
    """Rule: one item a line, an empty line being one; bytes that are no text pass through."""
    done = exo_gpu("map", "-k", "printf '[%s]' {}", stdin=stdin)
    assert done.returncode == 0
    assert done.stdout == "".join(f"[{item}]" for item in items)


def test_standard_input_is_not_read_beside_arguments(devices, exo_gpu):
    """Rule: with ``:::`` the items are the arguments; without any there is nothing to do."""
    assert exo_gpu("map", "-k", "echo", ":::", "a", "b", stdin="c\n").stdout == "a\nb\n"
    nothing = exo_gpu("map", "echo", ":::", stdin="c\n")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_words_of_the_template_are_joined(devices, exo_gpu):
    """Rule: as in GNU parallel, words before ``:::`` are one template; options end at the first."""
    assert exo_gpu("map", "echo", "-n", "{}", "-k", ":::", "a").stdout == "a -k"


def test_an_option_after_two_dashes_is_the_template(devices, exo_gpu):
    """Rule: ``--`` ends our own options."""
    assert exo_gpu("map", "--", "echo", ":::", "-k").stdout == "-k\n"


@given(st.text(st.characters(exclude_characters="\0")))
def test_a_template_without_a_place_gets_the_item_behind_it(item):
    """Rule: every {} is replaced, and a template without one is followed by the item."""
    assert fill("a {} b {}", item).count(fill("", item).strip()) >= 2
    assert fill("a", item) == fill("a {}", item)


def fill(template: str, *arguments: str) -> str:
    return Template(template).fill(arguments, 1, None)


@pytest.mark.parametrize(
    ("failing", "status"), [(0, 0), (1, 1), (7, 7), (100, 100), (101, 101), (130, 101)]
)
def test_the_status_counts_the_failed_items(failing, status, devices, exo_gpu):
    """Rule: the number of failed items up to 100, and 101 for more."""
    items = "".join(f"{number}\n" for number in range(130))
    done = exo_gpu("map", "--slots", "4", f"test {{}} -ge {failing}", stdin=items)
    assert done.returncode == status


def test_a_command_that_is_killed_counts_as_failed(devices, exo_gpu):
    """Rule: an item ended by a signal is failed, and said so with its number and device."""
    done = exo_gpu("map", "kill -9 $$; echo", ":::", "a")
    assert done.returncode == 1
    assert "item 1 on cuda:0" in done.stderr


def test_an_item_that_no_command_can_hold_fails_alone(devices, exo_gpu):
    """Rule: a NUL or a line beyond the system's limit fails its own item, with the number said."""
    done = exo_gpu("map", "-k", "printf %.1s", stdin="a\0\nb\n" + "c" * 2**18 + "\nd\n")
    assert (done.returncode, done.stdout) == (2, "bd")
    assert "item 1 on cuda:0" in done.stderr
    assert "item 3 on cuda:0" in done.stderr


def test_output_and_errors_keep_their_streams(devices, exo_gpu):
    """Rule: what an item writes to standard error comes out there, whole."""
    done = exo_gpu("map", "-k", "echo {}; echo no {} >&2", ":::", "1", "2", "3")
    assert done.stdout == "1\n2\n3\n"
    assert done.stderr.replace("\n", " ").endswith("no 1 no 2 no 3 ")


def test_outputs_are_never_mixed(script, devices, exo_gpu):
    """Rule: an item's output comes out in one piece, however many run at once."""
    template = "for n in 1 2 3 4 5 6 7 8 9; do echo {} $n; done"
    done = exo_gpu("map", "--slots", "4", template, stdin="".join(f"{n}\n" for n in range(40)))
    lines = done.stdout.splitlines()
    blocks = [lines[start : start + 9] for start in range(0, len(lines), 9)]
    assert len(blocks) == 40
    for block in blocks:
        item = block[0].split()[0]
        assert block == [f"{item} {n}" for n in range(1, 10)]


def test_json_is_one_object_a_line(devices, exo_gpu):
    """Rule: programs get each item's end with its place, device, status, times and output."""
    done = exo_gpu("map", "--json", "-k", "echo {}; exit 3", ":::", "a", "b")
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert [end["index"] for end in ends] == [0, 1]
    assert {end["exit_status"] for end in ends} == {3}
    assert {end["ending"] for end in ends} == {"failed"}
    assert [end["stdout"] for end in ends] == ["a\n", "b\n"]
    assert all(end["device_id"] == "cuda:0" for end in ends)
    assert all(end["started_at"] <= end["ended_at"] for end in ends)
    odd = exo_gpu("map", "--json", "printf %s", stdin="\udcff\n")
    assert json.loads(odd.stdout)["stdout"] == "\ufffd"


def test_one_runtime_is_used_and_the_others_are_named(devices, exo_gpu):
    """Rule: beside an NVIDIA and an AMD card a default map keeps to one runtime and says so."""
    done = exo_gpu("map", 'echo "$EXO_GPU_FAKE_VISIBLE" {}', stdin="\n" * 20)
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"GPU-1111"}
    assert done.stderr.startswith("exo-gpu: left out: rocm:0 (of another runtime)")
    every = exo_gpu("map", "--all-devices", 'echo "$EXO_GPU_FAKE_VISIBLE"; echo', stdin="\n" * 60)
    assert every.stderr == ""
    assert every.returncode == 0


def test_answers_come_before_any_item(devices, exo_gpu, tmp_path):
    """Rule: never and not now are answers with their own statuses; no item is started."""
    done = exo_gpu("map", "--memory", "99TiB", "touch", ":::", "started")
    assert done.returncode == 69
    assert "cuda:0" in done.stderr
    assert not (tmp_path / "started").exists()


def test_our_own_failure_is_255(devices, exo_gpu, tmp_path):
    """Rule: small numbers count failed items, so our own failure is 255."""
    (tmp_path / "a file").touch()
    done = exo_gpu("map", "echo", ":::", "a", EXO_GPU_STATE=str(tmp_path / "a file" / "state"))
    assert done.returncode == 255
    assert done.stderr.count("\n") == 1


def test_items_are_taken_as_they_come(devices, command_line):
    """Rule: a pipe is read line by line; an item's result does not wait for the next line."""
    words = command_line("map", "--device", "cuda:0", "echo got {}")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(3):
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            assert child.stdout.readline() == f"got {number}\n"
        child.stdin.close()
        assert child.wait() == 0


def test_a_source_without_an_end_is_read_only_as_far_as_needed(devices, command_line):
    """Rule: items are never all in memory, and a reader that goes away ends the whole quietly."""
    with subprocess.Popen(["yes", "item"], stdout=subprocess.PIPE) as source:
        words = command_line("map", "--device", "cuda:0", "echo {}")
        with subprocess.Popen(
            words, stdin=source.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline() == b"item\n"
            child.stdout.close()
            assert child.stderr.read() == b""
            assert child.wait() == 141
        source.terminate()


def test_a_terminal_as_source_is_a_usage_error(devices, command_line):
    """Rule: nobody is left waiting at a terminal that looks dead."""
    main_end, terminal = pty.openpty()
    done = subprocess.run(
        command_line("map", "echo"), stdin=terminal, capture_output=True, text=True, check=False
    )
    os.close(terminal)
    os.close(main_end)
    assert done.returncode == 255
    assert ":::" in done.stderr


def test_progress_is_seen_on_a_terminal(devices, command_line, tmp_path):
    """Rule: while items run, one line on a terminal counts them; it goes away at the end."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = command_line("map", "--device", "cuda:0", "cat {}", ":::", str(gate))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=terminal) as child:
        os.close(terminal)
        seen = b""
        while b"0/1 done" not in seen:
            seen += os.read(main_end, 1024)
        gate.write_text("through\n")
        out, _ = child.communicate()
        while not seen.endswith(b"\r\x1b[K"):
            seen += os.read(main_end, 1024)
    os.close(main_end)
    assert out == b"through\n"
    assert child.returncode == 0


def test_an_interrupt_ends_the_items_too(devices, command_line, tmp_path):
    """Rule: Ctrl-C ends what runs, and the status is a shell's for it."""
    life = tmp_path / "life"
    os.mkfifo(life)
    # The item holds the pipe open for writing as long as it lives, so its end is our end of file.
    words = command_line(
        "map", "--device", "cuda:0", "exec 3> {}; echo begun >&3; sleep 600", ":::", str(life)
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        with life.open() as item:
            assert item.readline() == "begun\n"
            child.send_signal(signal.SIGINT)
            assert item.read() == ""
        _, errors = child.communicate()
    assert (child.returncode, errors.strip()) == (130, b"")


def ended(index: int, output: bytes) -> CommandDone:
    outcome = Outcome(
        item=index, ending=Ending.SUCCEEDED, started_at=0, ended_at=0, stdout=output, stderr=b"e"
    )
    return CommandDone(index, "", "cuda:0", outcome, turn=index)


@given(st.lists(st.binary(max_size=20), max_size=20), st.randoms(use_true_random=False))
def test_keeping_the_order_loses_nothing(outputs, random):
    """Rule: in whatever order items end, they come out by index, whole, and as soon as they can."""
    results = [ended(index, output) for index, output in enumerate(outputs)]
    shuffled = random.sample(results, len(results))
    assert list(in_order(iter(shuffled))) == results


def test_the_first_in_order_does_not_wait_for_the_last():
    """Rule: an item whose turn it is comes out at once."""

    def source():
        yield ended(0, b"first")
        pytest.fail("the next item was asked for before the first came out")

    assert next(in_order(source())).outcome.stdout == b"first"


def test_the_items_that_failed_are_named_at_the_end(devices, exo_gpu):
    """Rule: who counts failures also says which."""
    done = exo_gpu("map", "test {} -ne 3", ":::", "1", "2", "3")
    assert done.returncode == 1
    assert "1 of 3 items failed: 3" in done.stderr
    many = exo_gpu("map", "false", ":::", *map(str, range(12)))
    assert many.returncode == 12
    assert "12 of 12 items failed: " in many.stderr
    assert many.stderr.rstrip().endswith("and more")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_ends_the_items_too(devices, command_line, tmp_path, number):
    """Rule: what ends the command from outside leaves nothing running and no lease."""
    life = tmp_path / "life"
    os.mkfifo(life)
    words = command_line(
        "map", "--device", "cuda:0", "exec 3> {}; echo begun >&3; sleep 600", ":::", str(life)
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        with life.open() as item:
            assert item.readline() == "begun\n"
            child.send_signal(number)
            assert item.read() == ""
        child.communicate()
    assert child.returncode == 128 + number
