"""``exo-gpu leases`` and ``why``, and the options by which a command waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.nvml.fake_nvml import GIB, H100, FakeNvml, build
from tests.cli.conftest import CUDA

ONLY = ["--device", "cuda:0", "--exclusive"]
HOLD = ["--", "sh", "-c", "echo running; read answer"]


@pytest.fixture
def holder(devices, command_line):
    """A command that has cuda:0 to itself until it reads a line."""
    words = command_line("run", *ONLY, *HOLD)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout.readline() == "running\n"
        yield held
        if held.stdin and not held.stdin.closed:
            held.communicate("go\n")


def report(exo_gpu):
    return json.loads(exo_gpu("leases", "--json").stdout)


def waiting(exo_gpu):
    """The line, once somebody stands in it."""
    while not (line := report(exo_gpu)["waiting"]):
        pass
    return line


def test_nobody_holds_anything(devices, exo_gpu):
    done = exo_gpu("leases")
    assert (done.returncode, done.stdout) == (0, "Nobody holds a lease.\n")
    assert report(exo_gpu) == {"leases": [], "waiting": []}


def test_who_holds_what_is_said(holder, exo_gpu):
    done = exo_gpu("leases")
    header, figures, details = done.stdout.splitlines()
    assert header.split() == ["ID", "DEVICE", "HOLDS", "SEEN", "SINCE", "PID", "USER"]
    assert figures.split()[1:4] == ["cuda:0", "all", "-"]
    assert str(holder.pid) in figures
    assert details.strip().startswith("sh -c 'echo running; read answer'")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    (lease,) = report(exo_gpu)["leases"]
    assert (lease["device_id"], lease["exclusive"], lease["pid"]) == ("cuda:0", True, holder.pid)
    assert (lease["overrun_bytes"], lease["settling"]) == (0, False)


def test_not_now_is_said_at_once(holder, exo_gpu):
    """Rule: without --wait a command stands in no line; 75."""
    for option in ([], ["--no-wait"]):
        done = exo_gpu("run", *ONLY, *option, "--", "true")
        assert done.returncode == 75
        assert done.stderr.startswith("exo-gpu: not now: cuda:0 is wholly leased")
    assert report(exo_gpu)["waiting"] == []


def test_a_command_waits_its_turn_and_why_says_what_for(holder, exo_gpu, command_line):
    """Rule: with --wait it is told where it stands, and starts when the device is given back."""
    words = command_line("run", *ONLY, "--wait", "10m", "--", "echo", "served")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        (waiter,) = waiting(exo_gpu)
        told = one.stderr.readline()
        assert told.startswith(
            f"exo-gpu: waiting, first in the line (exo-gpu why {waiter['waiter_id']})"
        )
        why = exo_gpu("why", waiter["waiter_id"]).stdout
        assert "is number 1 in the line" in why
        assert "kept for it: cuda:0" in why
        assert "cuda:0 [exclusive, not now] is wholly leased by sh -c" in " ".join(why.split())
        facts = json.loads(exo_gpu("why", waiter["waiter_id"], "--json").stdout)
        assert (facts["place"], facts["ahead"]) == (1, [])
        assert "WAITING" in exo_gpu("leases").stdout
        lease = report(exo_gpu)["leases"][0]["lease_id"]
        assert "waits for nothing" in exo_gpu("why", lease).stdout
        assert json.loads(exo_gpu("why", lease, "--json").stdout)["waits_for"] == []
        holder.communicate("go\n")
        assert one.communicate()[0] == "served\n"
    assert one.returncode == 0
    assert report(exo_gpu) == {"leases": [], "waiting": []}


def test_a_wait_that_was_too_short_is_not_now(holder, exo_gpu):
    done = exo_gpu("run", *ONLY, "--wait", "200ms", "--", "true")
    assert done.returncode == 75
    assert report(exo_gpu)["waiting"] == []


def test_never_is_69_also_for_one_who_would_wait(devices, exo_gpu):
    assert exo_gpu("run", "--memory", "99TiB", "--wait", "1h", "--", "true").returncode == 69
    assert exo_gpu("map", "--memory", "99TiB", "--wait", "1h", "true", ":::", "1").returncode == 69


def test_map_waits_too(holder, exo_gpu, command_line):
    words = command_line("map", "--device", "cuda:0", "--wait", "10m", "echo {}", ":::", "1")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        waiting(exo_gpu)
        holder.communicate("go\n")
        out, _ = one.communicate()
    assert (one.returncode, out) == (0, "1\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_while_it_waits_leaves_nothing(
    number, holder, exo_gpu, command_line
):
    words = command_line("run", *ONLY, "--wait", "10m", "--", "true")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as one:
        waiting(exo_gpu)
        one.stderr.readline()
        one.send_signal(number)
        one.communicate()
    assert one.returncode in {130, -number, 128 + number}
    assert report(exo_gpu)["waiting"] == []


def test_a_place_in_the_line_can_be_taken_away(holder, exo_gpu, command_line):
    words = command_line("run", *ONLY, "--wait", "10m", "--", "true")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as one:
        (waiter,) = waiting(exo_gpu)
        assert exo_gpu("leases", "release", waiter["waiter_id"]).returncode == 0
        _, err = one.communicate()
    assert one.returncode == 75
    assert "taken out of the line" in err


def test_a_lease_in_use_ends_by_force_only_and_the_processes_are_named(holder, exo_gpu):
    name = report(exo_gpu)["leases"][0]["lease_id"]
    kept = exo_gpu("leases", "release", name)
    assert kept.returncode == 1
    assert str(holder.pid) in kept.stderr
    assert "--force" in kept.stderr
    assert exo_gpu("leases", "release", name, "--force").returncode == 0
    assert report(exo_gpu)["leases"] == []


def test_an_unknown_id_is_one_line(devices, exo_gpu):
    for words in (["leases", "release", "abc"], ["why", "abc"]):
        done = exo_gpu(*words)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "'abc'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--wait", "soon", "--", "true"],
        ["--wait", "-5s", "--", "true"],
        ["--wait", "5s", "--no-wait", "--", "true"],
        ["--overrun", "maybe", "--", "true"],
        ["--memory", "0", "--", "true"],
        ["--memory", "-1", "--", "true"],
    ],
)
def test_what_cannot_be_is_usage(words, devices, exo_gpu):
    done = exo_gpu("run", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_lease_stays_until_the_command_ends_whatever_becomes_of_the_wrapper(
    devices, exo_gpu, command_line
):
    """Rule: SIGKILL of the wrapper does not give its device away while its child works."""
    script = "echo $$; exec sleep 1000"
    words = command_line("run", *ONLY, "--", "sh", "-c", script)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as wrapper:
        child = int(wrapper.stdout.readline())
        wrapper.kill()
        wrapper.wait()
        (lease,) = report(exo_gpu)["leases"]
        assert exo_gpu("run", *ONLY, "--no-wait", "--", "true").returncode == 75
        kept = exo_gpu("leases", "release", lease["lease_id"])
        assert str(child) in kept.stderr
        os.kill(child, signal.SIGKILL)
    assert exo_gpu("run", *ONLY, "--", "true").returncode == 0


def test_a_network_file_system_is_refused_by_name(devices, exo_gpu, tmp_path):
    """Rule: by the kernel's own table of mounts, before anything is written there."""
    code = (
        "import sys; from exo.gpu.execution import state_directory as s; "
        "s.file_system = lambda path: 'nfs4'; "
        "from exo.gpu.cli.main import main; sys.exit(main(['leases']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "nfs4, a network file system" in done.stderr


@pytest.mark.shows("cuda", "processes", "fake")
def test_a_command_that_takes_more_than_it_declared_is_told_on(
    tmp_path, monkeypatch, exo_gpu, command_line
):
    """Rule: holder, declared and seen, in the log and in `leases`, by the driver's own list."""
    try:
        library = build(tmp_path)
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")
    driver = FakeNvml(library, tmp_path / "nvml.txt")
    card = H100 | {"memory.used": 4 * GIB}
    driver.write(card)
    monkeypatch.setenv("EXO_GPU_FAKE_NVML", str(driver.description))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    words = command_line("run", "--device", "cuda:0", "--memory", "2GiB", *HOLD)
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as one:
        assert one.stdout.readline() == "running\n"
        (lease,) = report(exo_gpu)["leases"]
        (child,) = (
            int(pid) for pid in Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()
        )
        driver.write(card | {"processes": f"{child}:{3 * GIB}"})
        told = one.stderr.readline()
        assert "holds 3.0 GiB, and declared 2.0 GiB" in told
        (lease,) = report(exo_gpu)["leases"]
        assert (lease["seen_bytes"], lease["overrun_bytes"]) == (3 * GIB, GIB)
        assert "MORE THAN DECLARED" in exo_gpu("leases").stdout
        driver.write(card)
        one.communicate("go\n")


assert CUDA["device_id"] == "cuda:0"
