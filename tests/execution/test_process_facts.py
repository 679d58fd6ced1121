"""What the system tells of processes that a driver lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from exo.gpu.execution.process_facts import FIRST_PID_NAMESPACE, describe, numbers_agree

GIB = 2**30
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pid namespaces are Linux's")


@pytest.fixture
def child():
    """A process that waits for its end."""
    command = [sys.executable, "-c", "input()", "a word"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, env=os.environ | {"EXO_GPU_LEASES": "one,two"}
    ) as started:
        yield started
        started.communicate(b"\n")


@pytest.fixture
def proc(tmp_path):
    """Builds a ``/proc`` for this process in a namespace, and for one other with open files."""

    def build(namespace: str = FIRST_PID_NAMESPACE, **files: list[str]) -> Path:
        (tmp_path / "self" / "ns").mkdir(parents=True)
        (tmp_path / "self" / "ns" / "pid").symlink_to(namespace)
        for pid, targets in files.items():
            folder = tmp_path / pid.removeprefix("pid_") / "fd"
            folder.mkdir(parents=True)
            for number, target in enumerate(targets):
                (folder / str(number)).symlink_to(target)
        return tmp_path

    return build


def test_a_process_here_is_named(child, proc):
    """Rule: user, command, start, leases and descent are the system's, the memory the driver's."""
    found = describe(child.pid, GIB, proc=proc())
    assert found.memory_bytes == GIB
    assert found.user == psutil.Process().username()
    assert found.command is not None
    assert found.command.endswith("-c input() a word")
    assert found.since == psutil.Process(child.pid).create_time()
    assert found.lease_ids == ("one", "two")
    assert [pid for pid, _ in found.ancestry][:2] == [child.pid, os.getpid()]
    assert found.reason == ""


def test_a_process_that_is_not_here_has_its_number_and_the_reason(proc):
    """Rule: nothing is known of a process that is gone, and why is said."""
    found = describe(2**22 + 1, GIB, proc=proc())
    assert (found.pid, found.memory_bytes) == (2**22 + 1, GIB)
    assert (found.user, found.command, found.since) == (None, None, None)
    assert "ended" in found.reason


def test_a_process_that_ended_is_none(proc):
    """Rule: what nobody waited for yet has a number, and does no work."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        found = describe(ended.pid, proc=proc())
        assert found.command is None
        assert "ended" in found.reason
        ended.wait()


@LINUX
def test_in_a_container_a_number_alone_names_nobody(child, proc):
    """Rule: where the driver may count as the host does, the local namesake is not taken for it."""
    root = proc("pid:[4026532999]", **{f"pid_{child.pid}": ["/dev/null", "/tmp/x", "pipe:[1]"]})
    found = describe(child.pid, GIB, proc=root)
    assert found.pid == child.pid
    assert (found.user, found.command, found.lease_ids, found.ancestry) == (None, None, (), ())
    assert "container" in found.reason


@LINUX
@pytest.mark.parametrize("file", ["/dev/nvidia0", "/dev/dri/renderD128", "/dev/kfd"])
def test_in_a_container_an_open_device_file_confirms_the_number(child, proc, file):
    """Rule: the local process that holds a device open is the one that the driver means."""
    root = proc("pid:[4026532999]", **{f"pid_{child.pid}": ["/dev/pts/0", file]})
    found = describe(child.pid, GIB, proc=root)
    assert found.command is not None
    assert found.reason == ""


@LINUX
def test_in_a_container_open_files_that_are_hidden_confirm_nothing(child, proc, monkeypatch):
    """Rule: what cannot be compared is not taken for equal."""
    root = proc("pid:[4026532999]", **{f"pid_{child.pid}": ["/dev/nvidia0"]})

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = describe(child.pid, proc=root)
    assert found.command is None
    assert "cannot be seen" in found.reason


@LINUX
def test_where_the_namespace_is_not_known_numbers_are_not_trusted(tmp_path, child):
    """Rule: a kernel that does not tell is no reason to believe."""
    assert not numbers_agree(tmp_path)
    assert describe(child.pid, proc=tmp_path).command is None
