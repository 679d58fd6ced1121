"""The desk: memory is back before the next one is let in, and who waits is woken, in order."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

import pytest
from msgspec.structs import replace

from exo.gpu.nodes import awaited_memory, leasing
from exo.gpu.nodes.local import LocalNode
from exo.gpu.telemetry.sampling.observation import Observation
from exo.gpu.vocabulary.errors import LeaseKept, NoSuchLease, NotNow
from exo.gpu.vocabulary.lease import Waiter
from exo.gpu.vocabulary.request import Request

GIB = 2**30
WAIT_SECONDS = 30.0


def entry(device_id, used_bytes=0, **more):
    return {
        "device_id": device_id,
        "name": "Card",
        "vendor": "NVIDIA",
        "backend": "fake",
        "runtime": "cuda",
        "hardware_id": f"HW-{device_id}",
        "memory_bytes": 8 * GIB,
        "sample": {"memory_total_bytes": 8 * GIB, "memory_used_bytes": used_bytes},
    } | more


class Box:
    """A scripted machine whose readings a test changes, and nodes on it."""

    def __init__(self, folder):
        self.path = folder / "box.json"
        self.nodes = []

    def write(self, *devices):
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"devices": list(devices)}))
        fresh.replace(self.path)

    def node(self, **variables):
        environ = dict(os.environ) | {"EXO_GPU_FAKE": str(self.path)} | variables
        self.nodes.append(LocalNode(environ))
        return self.nodes[-1]


@pytest.fixture
def box(tmp_path):
    machine = Box(tmp_path)
    machine.write(entry("cuda:0"))
    yield machine
    for node in machine.nodes:
        node.close()


WHOLE = Request(exclusive=True, holder="somebody")


def taken(node, request=WHOLE, **options):
    grant = node.acquire(request, **options)
    assert grant.lease_ids, grant.decision.refusals
    return grant.lease_ids[0]


def in_background(act):
    """Runs on a thread; the answer is in the list that comes back, once the thread has ended."""
    box = []

    def run():
        try:
            box.append(act())
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, box


def until(condition):
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_the_next_one_is_let_in_when_the_memory_is_back(box):
    """Rule: 3 GiB linger after the lease has ended; the next one waits for them, unasked."""
    node, other = box.node(), box.node()
    lease_id = taken(node)
    box.write(entry("cuda:0", 3 * GIB))
    node.release(lease_id)
    assert not other.acquire(WHOLE, wait_seconds=0).lease_ids, "--no-wait waits for nothing"
    (settling,) = node.leases()
    assert settling.settling
    thread, answer = in_background(lambda: other.acquire(WHOLE))
    box.write(entry("cuda:0", 0))
    thread.join(WAIT_SECONDS)
    assert answer[0].lease_ids


def test_memory_that_does_not_come_back_counts_as_somebody_elses(box, monkeypatch, caplog):
    """Rule: after the deadline the next one is let in, and it is said what is in the way."""
    for module in (awaited_memory, leasing):
        monkeypatch.setattr(module, "SETTLE_SECONDS", 0.3)
    caplog.set_level(logging.WARNING)
    node, other = box.node(), box.node()
    lease_id = taken(node)
    box.write(entry("cuda:0", 3 * GIB))
    node.release(lease_id)
    assert other.acquire(Request(memory_bytes=5 * GIB)).lease_ids
    assert "the memory is not back: 3.0 GiB in use" in caplog.text
    assert "somebody" in caplog.text
    assert not other.acquire(Request(memory_bytes=1 * GIB), wait_seconds=0).lease_ids


def test_where_use_is_unknown_nobody_is_kept_waiting(box):
    box.write(entry("cuda:0", None))
    node = box.node()
    node.release(taken(node))
    assert taken(node, wait_seconds=0)


def test_the_hosts_memory_is_back_before_the_lock(box):
    """Rule: the kernel frees a process's memory before its files: nothing is to be awaited."""
    box.write(entry("cpu:0", GIB, device_class="host", memory_pool="host", slots=1))
    node = box.node()
    lease_id = taken(node)
    box.write(entry("cpu:0", 7 * GIB, device_class="host", memory_pool="host", slots=1))
    node.release(lease_id)
    assert taken(node, wait_seconds=0)


def test_a_waiter_is_woken_by_the_release(box, monkeypatch):
    """Rule: by its bell: here nobody polls."""
    monkeypatch.setattr(leasing, "POLL_SECONDS", 1000.0)
    node, other = box.node(), box.node()
    lease_id = taken(node)
    heard = []
    thread, answer = in_background(
        lambda: other.acquire(WHOLE, wait_seconds=600, on_wait=lambda *told: heard.append(told))
    )
    until(lambda: heard)
    ((waiter, turn),) = heard
    assert turn.ahead == ()
    assert "somebody" in leasing.place_words(waiter, turn)
    ((standing, _),) = node.line()
    assert (standing.waiter_id, standing.reserved) == (waiter.waiter_id, ("cuda:0",))
    node.release(lease_id)
    thread.join(WAIT_SECONDS)
    assert answer[0].lease_ids
    assert node.line() == ()


def test_those_who_wait_are_served_in_the_order_in_which_they_came(box):
    node = box.node()
    lease_id = taken(node)
    order = []
    threads = []
    for number in range(5):
        own = box.node()

        def wait(own=own, number=number):
            held = taken(own, wait_seconds=600)
            order.append(number)
            own.release(held)

        threads.append(in_background(wait)[0])
        until(lambda number=number: len(node.line()) == number + 1)
    node.release(lease_id)
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert order == [0, 1, 2, 3, 4]


def test_who_does_not_wait_does_not_push_in(box):
    """Rule: what is kept for those in the line is not for one who comes by."""
    box.write(entry("cuda:0"), entry("cuda:1"))
    node = box.node()
    lease_id = taken(node, Request(exclusive=True, devices=("cuda:0",)))
    thread, _ = in_background(lambda: box.node().acquire(replace(WHOLE, count=2), wait_seconds=600))
    until(node.line)
    until(lambda: node.line()[0][0].reserved)
    refused = node.acquire(Request(), wait_seconds=0).decision
    assert [one.rule for one in refused.refusals] == ["slots", "line"] or [
        one.rule for one in refused.refusals
    ] == ["exclusive", "line"]
    node.release(lease_id)
    thread.join(WAIT_SECONDS)


def test_a_wait_ends_at_its_time_and_leaves_nothing(box, state_folder):
    node, other = box.node(), box.node()
    taken(node)
    assert not other.acquire(WHOLE, wait_seconds=0.2).lease_ids
    assert node.line() == ()
    assert not list(state_folder.glob("boot-*/bells/*"))


def test_never_is_said_at_once_however_long_the_wait(box):
    decision = box.node().acquire(Request(memory_bytes=99 * GIB), wait_seconds=600).decision
    assert decision.never


def test_an_interrupt_while_waiting_leaves_nothing(box, monkeypatch, state_folder):
    """Rule: Ctrl-C gives the place up."""
    from exo.gpu.execution.held import HeldPlace

    node, other = box.node(), box.node()
    taken(node)

    def interrupt(self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldPlace, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        other.acquire(WHOLE, wait_seconds=600)
    assert node.line() == ()
    assert not list(state_folder.glob("boot-*/bells/*"))
    assert len(list(state_folder.glob("boot-*/locks/*"))) == 1


def test_a_place_can_be_taken_away(box):
    node, other = box.node(), box.node()
    taken(node)
    thread, answer = in_background(lambda: other.acquire(WHOLE, wait_seconds=600))
    until(node.line)
    ((waiter, _),) = node.line()
    assert isinstance(node.end_lease(waiter.waiter_id), Waiter)
    thread.join(WAIT_SECONDS)
    assert isinstance(answer[0], NotNow)
    assert "taken out of the line" in str(answer[0])


def test_a_lease_in_use_is_struck_out_by_force_only(box):
    """Rule: two would share the device unawares; so the processes are named first."""
    node = box.node()
    lease_id = taken(node)
    with pytest.raises(LeaseKept, match=str(os.getpid())) as caught:
        node.end_lease(lease_id)
    assert os.getpid() in caught.value.pids
    assert len(node.leases()) == 1
    assert node.end_lease(lease_id, force=True).lease_id == lease_id
    assert node.leases() == ()
    node.release(lease_id)


def test_an_unknown_id_is_said_with_those_that_are_here(box):
    node = box.node()
    lease_id = taken(node)
    with pytest.raises(NoSuchLease, match=lease_id):
        node.end_lease("abc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_lease_is_not_ended(box, state_folder):
    """Rule: only its owner and root may, by the owner of the lock file, not by a written name."""
    node = box.node()
    lease_id = taken(node)
    os.chmod(state_folder, 0o1777)
    os.chmod(box.path.parent, 0o755)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = "nothing"
        try:
            os.setgid(65534)
            os.setuid(65534)
            node.end_lease(lease_id, force=True)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read().startswith("LeaseKept: ")
    os.waitpid(child, 0)
    assert len(node.leases()) == 1


def test_a_lease_may_end_at_a_time_that_was_asked_for(box):
    node = box.node()
    held = taken(node, lasts_seconds=0.2)
    until(lambda: not node.leases())
    assert taken(node)
    node.release(held)


def test_under_a_watch_an_ended_lease_keeps_its_device_no_longer_than_without(box):
    """Rule: who watches asks the device anew where a lease has ended, instead of waiting it out."""
    node, heard = box.node(), threading.Event()
    node.watch(
        lambda event: heard.set() if isinstance(event, Observation) else None,
        cadence_seconds=0.2,
        search_seconds=60.0,
        max_history=10,
    )
    assert heard.wait(WAIT_SECONDS)
    for _ in range(3):
        node.release(taken(node, wait_seconds=0))
    node.unwatch()
