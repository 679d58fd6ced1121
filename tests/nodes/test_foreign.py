"""A whole device is not given away while a stranger works on it, as far as that is known."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from exo.gpu.coordination.leases import decide
from exo.gpu.nodes.foreign import REUSE_SECONDS, STALE_SECONDS, ForeignProcesses
from exo.gpu.nodes.local import LocalNode
from exo.gpu.scheduling.selector import explain
from exo.gpu.vocabulary.process import ProcessList, RunningProcess
from exo.gpu.vocabulary.request import Request
from tests.coordination.boxes import GIB, device, host, write_box

WAIT_SECONDS = 30.0
ALONE = Request(exclusive=True, devices=("cuda:0",))


@pytest.fixture
def stranger():
    """A process that does not descend from this one, and what it is called."""
    code = (
        "import os, sys\n"
        "if os.fork(): sys.exit()\n"
        "os.setsid()\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        pid = int(parent.stdout.readline())
        parent.wait()  # its child is nobody's here now
        yield pid
        parent.stdin.close()
        parent.stdout.read()  # until it has ended


@pytest.fixture
def node(tmp_path):
    """Opens nodes on a scripted machine whose first card lists these processes."""
    opened: list[LocalNode] = []

    def open_node(pids: list[int] | None, **variables: str) -> LocalNode:
        listed = None if pids is None else [{"pid": pid, "memory_bytes": GIB} for pid in pids]
        more = {} if listed is None else {"processes": listed}
        box = write_box(tmp_path, device("cuda:0", "NVIDIA", "cuda", **more), host())
        opened.append(LocalNode(dict(os.environ) | {"EXO_GPU_FAKE": str(box)} | variables))
        return opened[-1]

    yield open_node
    for one in opened:
        one.close()


def test_a_device_on_which_a_stranger_works_is_not_given_away_whole(node, stranger):
    """Rule: not now, with pid and command; who asks for a part of it is served."""
    home = node([stranger])
    grant = home.acquire(ALONE)
    assert not grant.lease_ids
    assert not grant.decision.never
    (reason,) = [one.reason for one in grant.decision.refusals if one.device_id == "cuda:0"]
    assert reason.startswith(f"is asked for alone, but process {stranger} ({sys.executable} -c")
    assert reason.endswith("works there without a lease")
    assert home.acquire(Request(memory_bytes=GIB, devices=("cuda:0",))).lease_ids


def test_what_is_set_to_be_ignored_does_not_count(node, stranger):
    import psutil

    name = psutil.Process(stranger).name()
    home = node([stranger], EXO_GPU_IGNORE_PROCESSES=f"Xorg,{name}")
    assert home.acquire(ALONE).lease_ids


def test_the_asker_and_its_children_are_no_strangers(node):
    """Rule: a program that has opened the card already may still ask for all of it."""
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            assert node([os.getpid(), child.pid]).acquire(ALONE).lease_ids
        finally:
            child.kill()


def test_what_is_not_known_refuses_nothing_and_is_said(node):
    """Rule: a driver that lists nothing, and a process nobody can see, are told in the words."""
    decision, snapshot = decide(ALONE, node=node(None))
    assert decision.chosen == ("cuda:0",)
    words = " ".join(explain(decision, snapshot).split())
    assert "who else works there is not fully known: its script lists no processes" in words
    decision, snapshot = decide(ALONE, node=node([2**22 + 1]))
    assert decision.chosen == ("cuda:0",)
    assert "process 4194305: no such process here" in " ".join(explain(decision, snapshot).split())


def test_who_does_not_ask_for_all_of_it_is_told_nothing(node):
    decision, snapshot = decide(Request(devices=("cuda:0",)), node=node(None))
    assert "who else works" not in explain(decision, snapshot)


def test_whoever_waits_gets_the_device_once_the_stranger_has_ended(node, stranger):
    """Rule: the wait looks again, and others keep behind whoever waits for a whole device."""
    home = node([stranger])
    waiting = threading.Event()
    grants = []

    def wait() -> None:
        grants.append(
            home.acquire(ALONE, wait_seconds=WAIT_SECONDS, on_wait=lambda *_: waiting.set())
        )

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(WAIT_SECONDS)
    os.kill(stranger, 15)
    thread.join(WAIT_SECONDS)
    assert grants[0].lease_ids


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_list_is_used_again_for_a_moment_and_never_when_it_is_old():
    """Rule: many questions at once cost one; an old answer is no answer."""
    clock, asked = Clock(), []
    me = RunningProcess(pid=os.getppid(), name="parent", command="parent")

    def ask() -> tuple[ProcessList, ...]:
        asked.append(clock.now)
        return (ProcessList(device_id="cuda:0", processes=(me,)),)

    foreign = ForeignProcesses(ask, (), clock)
    assert foreign.of("cuda:0", ()) == ((), "")
    foreign.look()
    foreign.look()
    assert foreign.of("cuda:0", ()) == ((me,), "")
    clock.now += REUSE_SECONDS + 0.1
    foreign.look()
    assert len(asked) == 2
    clock.now += STALE_SECONDS + 0.1
    assert foreign.of("cuda:0", ()) == ((), "")


def test_what_ended_since_the_driver_was_asked_works_there_no_more():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    listed = RunningProcess(pid=gone.pid, name="true", command="true")
    answer = (ProcessList(device_id="cuda:0", processes=(listed,)),)
    foreign = ForeignProcesses(lambda: answer, ())
    foreign.look()
    assert foreign.of("cuda:0", ()) == ((), "")
