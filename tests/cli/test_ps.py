"""``exo-gpu ps``: who holds what, foreign processes and leases side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from exo.gpu.execution.process_facts import numbers_agree
from tests.backends.nvml.fake_nvml import GIB, H100, T4, VARIABLE, FakeNvml, build
from tests.cli.conftest import CUDA, HOST, ROCM

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not numbers_agree(), reason="in a container, a script's processes cannot be told from others"
)

# It works under a lease of its own, and does it with a child of its own.
WAITING = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[str]]:
    """A process that nobody leased anything for."""
    command = [sys.executable, "-c", "input()", "a stranger"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as started:
        yield started
        started.communicate("\n")


@contextmanager
def under_a_lease(command_line) -> Iterator[tuple[int, int]]:
    """Pids of ``exo-gpu run`` and of the process that works below it, on the device ``cuda:0``."""
    words = ["--memory", "2GiB", "--device", "cuda:0", "--", sys.executable, "-c", WAITING]
    with subprocess.Popen(
        command_line("run", *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "1\n"
        yield run.pid, psutil.Process(run.pid).children(recursive=True)[-1].pid
        run.communicate("\n")


@pytest.fixture
def leased(devices, command_line) -> Iterator[tuple[int, int]]:
    """The same, on a scripted machine."""
    with under_a_lease(command_line) as pids:
        yield pids


@pytest.fixture
def nvml(tmp_path, monkeypatch) -> FakeNvml:
    """The fake NVIDIA driver, as the only one of this test's children."""
    try:
        library = build(tmp_path)
    except FileNotFoundError:
        pytest.skip("no C compiler on this machine: apt install gcc libc6-dev")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nvml.txt"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return FakeNvml(library, tmp_path / "nvml.txt")


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """The words of each line behind device and pid."""
    table = text.split("\n\n", maxsplit=1)[0]
    lines = [line.split() for line in table.splitlines()[1:]]
    return {(words[0], words[1]): words[2:] for words in lines}


def test_foreign_processes_and_leases_on_scripted_cards(script, leased, stranger, exo_gpu):
    """Rule: each is a row: a process under a lease, one without, and the reason where none tell."""
    _, worker = leased
    listed = [{"pid": worker, "memory_bytes": GIB}, {"pid": stranger.pid}]
    script(CUDA | {"processes": listed}, ROCM | {"processes": []}, HOST)
    done = exo_gpu("ps")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = rows(done.stdout)
    user = psutil.Process().username()[:9]
    assert found["cuda:0", str(worker)][0].startswith(user)
    assert found["cuda:0", str(worker)][2:6] == ["1.0", "GiB", "2.0", "GiB"]
    assert found["cuda:0", str(stranger.pid)][2:4] == ["-", "foreign"]
    assert len(found) == 2
    assert f"cuda:0 {stranger.pid}: the driver does not tell its memory" in done.stdout
    assert "cpu:0: every process works on the host: leases only" in done.stdout


def test_a_lease_before_anything_is_on_the_device(script, leased, exo_gpu):
    """Rule: what is reserved is shown with its holder, also while the driver lists nobody."""
    run, _ = leased
    script(CUDA | {"processes": []})
    done = exo_gpu("ps")
    ((row, words),) = rows(done.stdout).items()
    assert row == ("cuda:0", str(run))
    assert words[2:5] == ["-", "2.0", "GiB"]
    assert f"cuda:0 {run}: leased, nothing on the device yet" in done.stdout


def test_json_says_everything(script, leased, stranger, exo_gpu):
    """Rule: programs get every field, null where nothing is known, and the reasons."""
    run, worker = leased
    listed = [{"pid": worker, "memory_bytes": GIB}, {"pid": stranger.pid}, {"pid": 2**22 + 1}]
    script(CUDA | {"processes": listed}, ROCM)
    report = json.loads(exo_gpu("ps", "--json").stdout)
    assert set(report) == {"users", "untold"}
    assert report["untold"] == {"rocm:0": "its script lists no processes"}
    covered, foreign, gone = report["users"]
    assert (covered["pid"], covered["foreign"], covered["declared_bytes"]) == (
        worker,
        False,
        2 * GIB,
    )
    assert "python" in covered["holder"]
    assert covered["lease_id"]
    assert covered["since"] == psutil.Process(worker).create_time()
    assert (foreign["pid"], foreign["foreign"], foreign["lease_id"]) == (stranger.pid, True, None)
    assert foreign["command"].endswith("a stranger")
    assert (gone["user"], gone["command"], gone["since"]) == (None, None, None)
    assert gone["reason"]
    assert run not in {one["pid"] for one in report["users"]}


def test_one_device_alone(script, exo_gpu):
    """Rule: --device takes ids and hardware ids; a name that no device has is never available."""
    script(CUDA, ROCM)
    assert set(json.loads(exo_gpu("ps", "--json", "--device", "GPU-2222").stdout)["untold"]) == {
        "rocm:0"
    }
    refused = exo_gpu("ps", "--device", "cuda:O")
    assert refused.returncode == 69
    assert "did you mean 'cuda:0'" in refused.stderr


def test_nobody_is_an_answer(script, exo_gpu):
    """Rule: free devices are said to be free."""
    script(CUDA | {"processes": []})
    assert exo_gpu("ps").stdout == "No process is known on these devices, and no lease.\n"


def test_a_device_that_fails_costs_its_own_line(script, stranger, exo_gpu):
    """Rule: the others' users are listed, and the reason is the driver's."""
    card = CUDA | {"processes": [{"pid": stranger.pid, "memory_bytes": 1}]}
    script(card, ROCM | {"fail": "it fell off the bus"})
    done = exo_gpu("ps")
    assert ("cuda:0", str(stranger.pid)) in rows(done.stdout)
    assert "rocm:0: it fell off the bus" in done.stdout


def test_without_a_lease_store_the_processes_are_shown(script, stranger, exo_gpu, tmp_path):
    """Rule: seeing who works needs no store; that leases are not shown is said."""
    script(CUDA | {"processes": [{"pid": stranger.pid}]})
    (tmp_path / "file").touch()
    done = exo_gpu("ps", EXO_GPU_STATE=str(tmp_path / "file"))
    assert done.returncode == 0
    assert ("cuda:0", str(stranger.pid)) in rows(done.stdout)
    assert "leases and cordons are not shown" in done.stderr


def test_real_processes_on_a_fake_driver(nvml, stranger, command_line, exo_gpu):
    """Rule: what NVML lists is found on this machine, joined with the lease it works under."""
    nvml.write(H100 | {"processes": "", "graphics": ""}, T4 | {"processes": "!4", "graphics": "!4"})
    with under_a_lease(command_line) as (_, worker):
        nvml.change("0.processes", f"{worker}:{GIB},{stranger.pid}:{3 * GIB}")
        nvml.change("0.graphics", f"{os.getpid()}:-")
        report = json.loads(exo_gpu("ps", "--json", "--device", "cuda:0").stdout)
        everywhere = exo_gpu("ps")
    by_pid = {one["pid"]: one for one in report["users"]}
    assert list(by_pid) == [worker, stranger.pid, os.getpid()]
    assert not by_pid[worker]["foreign"]
    assert "print(1" in by_pid[worker]["command"]
    assert by_pid[stranger.pid]["foreign"]
    assert by_pid[stranger.pid]["memory_bytes"] == 3 * GIB
    assert by_pid[os.getpid()]["memory_bytes"] is None
    assert "cuda:1: the driver lists no processes" in everywhere.stdout
