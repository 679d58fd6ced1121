"""A command that takes more than it declared: seen by the driver's list, told, ended if asked."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading

import pytest

from exo.gpu.backend import DeviceProcess
from exo.gpu.nodes.overrun import OverrunWatch, Seen, overrun_words, seen_under
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease

GIB = 2**30
DECLARED = Lease(
    lease_id="one",
    device_id="cuda:0",
    hardware_id="GPU-0",
    memory_pool="GPU-0",
    memory_bytes=2 * GIB,
    holder="a training",
)
SLEEPER = "import sys; sys.stdin.read()"
PARENT = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); print(p.pid, flush=True); p.wait()"


@pytest.fixture
def family():
    """A process and its child: (process, child's id)."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.communicate()


def listed(pid, gib):
    return DeviceProcess(pid=pid, memory_bytes=None if gib is None else gib * GIB)


def test_the_whole_tree_counts_and_nobody_else(family):
    process, child = family
    everybody = [listed(process.pid, 1), listed(child, 2), listed(1, 16)]
    assert seen_under(process.pid, everybody) == Seen(3 * GIB, tuple(sorted((process.pid, child))))


def test_what_the_driver_hides_is_unknown_and_what_is_not_there_is_nothing(family):
    process, child = family
    assert seen_under(process.pid, [listed(child, None)]) == Seen(None, (child,))
    assert seen_under(process.pid, [listed(1, 1)]) == Seen(0, ())
    assert seen_under(2**22 + 1, [listed(1, 1)]) == Seen(0, ())


def watched(lease, lists, root_pid, *, kill=False):
    """Runs a watch until it has looked at every list; what it noted."""
    noted, looks, over = [], iter(lists), threading.Event()

    def driver_list(device_id):
        assert device_id == lease.device_id
        found = next(looks, over)
        if found is over:
            over.set()
            return None
        return found

    def note(lease_id, seen):
        noted.append((lease_id, seen))

    with OverrunWatch([lease], driver_list, note, kill=kill, every_seconds=0.01) as watch:
        watch.start(root_pid)
        assert over.wait(30)
    return noted


def test_an_overrun_is_told_once_with_holder_declared_and_seen(family, caplog):
    process, child = family
    caplog.set_level(logging.WARNING)
    within, beyond = [listed(child, 2)], [listed(child, 3)]
    noted = watched(DECLARED, [within, beyond, beyond, within, beyond], process.pid)
    assert [seen.memory_bytes // GIB for _, seen in noted] == [2, 3, 2, 3]
    (record,) = caplog.records
    assert record.message == "cuda:0: a training holds 3.0 GiB, and declared 2.0 GiB"
    assert process.poll() is None


def test_with_kill_the_whole_tree_is_ended(family, caplog):
    process, child = family
    watched(DECLARED, [[listed(child, 3)]], process.pid, kill=True)
    assert process.wait(30) == -signal.SIGTERM
    assert "it is ended" in caplog.text


def test_without_a_declaration_nothing_is_an_overrun(family, caplog):
    from msgspec.structs import replace

    process, child = family
    noted = watched(replace(DECLARED, memory_bytes=None), [[listed(child, 30)]], process.pid)
    assert noted[0][1].memory_bytes == 30 * GIB
    assert caplog.records == []


def test_a_store_that_fails_does_not_end_the_watch(family, caplog):
    """Rule: an overrun is told although it cannot be written down."""
    process, child = family
    told = threading.Event()

    def note(lease_id, seen):
        told.set()
        raise StoreError("gone")

    lists = lambda device_id: [listed(child, 3)]  # noqa: E731
    with OverrunWatch([DECLARED], lists, note, kill=False, every_seconds=0.01) as watch:
        watch.start(process.pid)
        assert told.wait(30)
        while not caplog.records:
            threading.Event().wait(0.01)
    assert "declared" in caplog.text


def test_who_uses_more_is_named_as_well_as_is_known():
    from msgspec.structs import replace

    nameless = replace(DECLARED, holder="", command="", pid=7, seen_bytes=3 * GIB)
    assert overrun_words(nameless).startswith("cuda:0: process 7 holds")
    assert nameless.overrun_bytes == GIB
    assert DECLARED.overrun_bytes == 0
