"""``exo-gpu run``: the command's own status, on its device alone."""

from __future__ import annotations

import json
import os
import re
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


def test_what_it_took_is_said_on_request(devices, exo_gpu, script):
    """Rule: --report ends with one line: devices, time, and peak memory beside what was declared."""
    silent = exo_gpu("run", "--device", "cuda:0", "--", "true")
    assert silent.stderr == ""
    short = exo_gpu("run", "--memory", "8GiB", "--report", "--device", "cuda:0", "--", "true")
    assert re.fullmatch(
        r"exo-gpu: cuda:0 for \d+\.\d s, peak not seen of 8\.0 GiB declared\n", short.stderr
    )


def test_with_v_the_same_line_is_in_the_log(devices, exo_gpu):
    """Rule: whoever has the log on sees what a command took without asking for it."""
    done = exo_gpu("-v", "run", "--device", "cuda:0", "--", "true")
    (line,) = [line for line in done.stderr.splitlines() if "exo.gpu.cli.run" in line]
    assert re.search(r"cuda:0 for \d+\.\d s, peak not seen$", line)


def test_the_peak_is_the_drivers_figure_for_the_commands_own_processes(devices, exo_gpu):
    """Rule: what the driver counts for the command's tree is its peak; others' memory is not."""
    code = (
        "import json, os, sys, time\n"
        "from pathlib import Path\n"
        "path = Path(os.environ['EXO_GPU_FAKE'])\n"
        "def hold(size):\n"
        "    script = json.loads(path.read_text())\n"
        "    others = {'pid': 1, 'memory_bytes': 2**33}\n"
        "    script['devices'][0]['processes'] = [others, {'pid': os.getpid(), 'memory_bytes': size}]\n"
        "    new = path.with_suffix('.new'); new.write_text(json.dumps(script)); new.replace(path)\n"
        "from exo.gpu.nodes.local import LocalNode\n"
        "with LocalNode() as node:\n"
        "    for size in (3 * 2**30, 2**30):\n"
        "        hold(size)\n"
        "        while node.snapshot().devices[0].leases[0].seen_bytes != size:\n"
        "            time.sleep(0.05)\n"
    )
    only = ["--device", "cuda:0", "--memory", "4GiB"]
    done = exo_gpu("run", *only, "--report", "--", sys.executable, "-c", code)
    assert "peak 3.0 GiB of 4.0 GiB declared" in done.stderr


def test_a_command_that_takes_too_long_is_ended(devices, exo_gpu):
    """Rule: --timeout ends it with the status of timeout(1), and no retry follows."""
    command = ["sh", "-c", "echo begun; sleep 1000"]
    done = exo_gpu("run", "--timeout", "1s", "--retries", "3", "--report", "--", *command)
    assert (done.returncode, done.stdout) == (124, "begun\n")
    assert "ended by its time limit" in done.stderr
    assert exo_gpu("run", "--timeout", "0", "--", "true").returncode == 2


def test_a_failing_command_is_tried_again_on_request_only(devices, exo_gpu, tmp_path):
    """Rule: --retries N starts it N times more at most; without it a failure is the answer."""
    command = ["sh", "-c", "echo x >> tries; test $(wc -l < tries) -ge 3"]
    only = ["--device", "cuda:0"]
    assert exo_gpu("run", *only, "--", *command).returncode == 1
    assert exo_gpu("run", *only, "--retries", "0", "--", *command).returncode == 1
    (tmp_path / "tries").unlink()
    done = exo_gpu("run", *only, "--retries", "5", "--report", "--", *command)
    assert done.returncode == 0
    first, second, report = done.stderr.splitlines()
    assert first == "exo-gpu: on cuda:0 the command exited with status 1; it is started again"
    assert second == first
    assert report.endswith("at try 3")
    assert (tmp_path / "tries").read_text() == "x\n" * 3
    given_up = exo_gpu("run", *only, "--retries", "1", "--", "sh", "-c", "exit 7")
    assert given_up.returncode == 7
    assert given_up.stderr.count("started again") == 1


def test_a_dry_run_takes_nothing(devices, exo_gpu, tmp_path):
    """Rule: the decision, the variables and the command as lines for a shell; nothing is leased."""
    done = exo_gpu("run", "--dry-run", "--device", "rocm:0", "--", "touch", "a b")
    assert done.returncode == 0
    assert "# " in done.stdout
    assert "export EXO_GPU_FAKE_VISIBLE=GPU-2222" in done.stdout
    assert done.stdout.endswith("touch 'a b'\n")
    assert "no lease" in done.stderr
    assert not (tmp_path / "a b").exists()
    assert json.loads(exo_gpu("leases", "--json").stdout)["leases"] == []
    assert exo_gpu("run", "--dry-run", "--memory", "99TiB", "--", "true").returncode == 69


def test_the_variables_alone_are_safe_for_a_shell(script, exo_gpu):
    """Rule: --env-only prints what eval takes, whatever the names hold, and says that no lease is held."""
    odd = "GPU-$(touch hacked); 'x'"
    script(
        {
            "device_id": "cuda:0",
            "name": 'a "$HOME" card',
            "vendor": "NVIDIA",
            "backend": "fake",
            "runtime": "cuda",
            "hardware_id": odd,
        }
    )
    done = exo_gpu("run", "--env-only")
    assert done.returncode == 0
    assert "no lease is held" in done.stderr
    shown = subprocess.run(
        ["/bin/sh", "-euc", 'eval "$1"; printf %s "$EXO_GPU_FAKE_VISIBLE"', "sh", done.stdout],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == odd
    assert exo_gpu("run", "--env-only", "--", "true").returncode == 2
    assert exo_gpu("run", "--env-only", "--memory", "99TiB").returncode == 69


def test_a_run_has_a_name(devices, command_line, exo_gpu):
    """Rule: --name is what 'leases' calls it; else the command's own words."""
    for name, expected in (
        (["--name", "my training"], "my training"),
        ([], "sh -c 'echo up; cat'"),
    ):
        words = command_line("run", *name, "--device", "cuda:0", "--", "sh", "-c", "echo up; cat")
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as held:
            assert held.stdout is not None
            assert held.stdout.readline() == "up\n"
            (lease,) = json.loads(exo_gpu("leases", "--json").stdout)["leases"]
            held.communicate("")
        assert lease["holder"] == expected
