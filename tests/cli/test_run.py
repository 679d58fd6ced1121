"""``exo-gpu run``: the command's own status, on its device alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

PINNED = 'printf "%s" "$EXO_GPU_FAKE_VISIBLE"'


def test_no_option_is_needed(devices, exo_gpu):
    """Rule: without an option the command gets the best device, by hardware id."""
    done = exo_gpu("run", "--", "sh", "-c", PINNED)
    assert (done.returncode, done.stdout) == (0, "GPU-1111")


def test_the_command_knows_its_device(devices, exo_gpu):
    """Rule: what runs under a lease can ask which device it was given."""
    code = "import exo.gpu as gpu; print(gpu.current_device().device_id)"
    done = exo_gpu("run", "--on", "rocm", "--", sys.executable, "-c", code)
    assert done.stdout == "rocm:0\n"


def test_dashes_are_the_commands_own(devices, exo_gpu):
    """Rule: from the command on, every word is the command's, options of the same name too."""
    for words in (["--"], []):
        done = exo_gpu("run", *words, "printf", "%s|", "--memory", "-v", "--", "a b")
        assert done.stdout == "--memory|-v|--|a b|"


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_the_status_is_the_commands_own(command, status, devices, exo_gpu):
    """Rule: its status, and 128 + n when signal n ended it."""
    done = exo_gpu("run", "--", "sh", "-c", command)
    assert done.returncode == status


def test_what_cannot_run_has_a_shells_status(devices, exo_gpu, tmp_path):
    """Rule: 127 for no such command, 126 for one that cannot be executed; one line each."""
    absent = exo_gpu("run", "--", "no-such-command-here")
    assert absent.returncode == 127
    assert "no-such-command-here" in absent.stderr
    (tmp_path / "plain").write_text("data")
    forbidden = exo_gpu("run", "--", "./plain")
    assert forbidden.returncode == 126
    assert "./plain" in forbidden.stderr
    for done in (absent, forbidden):
        assert done.stderr.splitlines()[-1].startswith("exo-gpu: ")
        assert "Traceback" not in done.stderr


def test_standard_streams_are_the_commands(devices, exo_gpu):
    """Rule: the command reads and writes what the caller gave, untouched."""
    done = exo_gpu("run", "--device", "cuda:0", "--", "sh", "-c", "cat; echo no >&2", stdin="in")
    assert (done.stdout, done.stderr) == ("in", "no\n")


def test_never_starts_nothing_and_names_the_largest(devices, exo_gpu, tmp_path):
    """Rule: 69 at once, with the largest device named, and the command is not started."""
    done = exo_gpu("run", "--memory", "99TiB", "--", "touch", "started")
    assert done.returncode == 69
    assert "cuda:0" in done.stderr
    assert "24.0 GiB" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "started").exists()


def test_an_exclusive_device_is_not_given_twice(devices, exo_gpu, command_line):
    """Rule: while one command has a device to itself another is told: not now."""
    only = ["--device", "cuda:0", "--exclusive"]
    run = command_line("run", *only, "--", "sh", "-c", "echo running; read answer")
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "running\n"
        refused = exo_gpu("run", *only, "--", "true")
        held.communicate("go\n")
    assert refused.returncode == 75
    assert refused.stderr.startswith("exo-gpu: not now")
    assert exo_gpu("run", *only, "--", "true").returncode == 0


def test_idle_gpus_of_another_runtime_are_said(devices, exo_gpu):
    """Rule: a card that stays idle because of its runtime is news; that the host does, is not."""
    done = exo_gpu("run", "--", "true")
    assert done.stderr.startswith("exo-gpu: left out: rocm:0 (of another runtime)")
    assert "cpu:0" not in done.stderr


def test_a_signal_reaches_the_command(devices, command_line):
    """Rule: what is sent to the wrapper is meant for the command, and its status tells."""
    script = 'trap "echo told; exit 9" TERM; echo ready; while :; do read line; done'
    words = command_line("run", "--device", "cuda:0", "--", "sh", "-c", script)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n"
        held.send_signal(signal.SIGTERM)
        assert held.stdin is not None
        held.stdin.write("\n")
        held.stdin.flush()
        rest, _ = held.communicate()
    assert (rest, held.returncode) == ("told\n", 9)


def test_several_devices_are_all_or_nothing(script, devices, exo_gpu):
    """Rule: a gang gets as many alike devices as it asked for, and sees exactly those."""
    entries = json.loads(devices.read_text())["devices"]
    script(*entries, entries[0] | {"device_id": "cuda:1", "hardware_id": "GPU-1112"})
    both = exo_gpu("run", "--count", "2", "--", "sh", "-c", PINNED)
    assert both.returncode == 0, both.stderr
    assert sorted(both.stdout.split(",")) == ["GPU-1111", "GPU-1112"]
    assert exo_gpu("run", "--count", "3", "--", "true").returncode == 69


def test_the_callers_environment_is_kept(devices, exo_gpu):
    """Rule: beside the pinning variables the command has the caller's environment."""
    done = exo_gpu("run", "--", "sh", "-c", 'echo "$PLAIN"', PLAIN="as it was")
    assert done.stdout == "as it was\n"
    assert "EXO_GPU_DEVICE" not in os.environ
