"""Leases across processes: never more than there is, and gone with the last process under them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exo.gpu.execution.lease_store import LeaseStore
from exo.gpu.execution.state_directory import (
    StorePlace,
    boot_id,
    choose_place,
    prepare,
)
from exo.gpu.file_systems import file_system
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.lease import Lease

CAPACITY = 3

TAKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_lease_store as here
store = here.LeaseStore(here.StorePlace(Path(sys.argv[1]), "", ""))
for _ in range(int(sys.argv[3])):
    grant = store.take(here.up_to_capacity)
    print("took" if grant.leases else "full", grant.answer, flush=True)
    for held in grant.leases:
        held.release()
"""


def lease(memory_bytes: int = 1) -> Lease:
    return Lease(
        lease_id="",
        device_id="cuda:0",
        hardware_id="GPU-0",
        memory_pool="GPU-0",
        memory_bytes=memory_bytes,
    )


def up_to_capacity(live):
    return len(live), [lease()] if len(live) < CAPACITY else []


def always(live):
    return len(live), [lease()]


@pytest.fixture
def store(tmp_path):
    store = LeaseStore(StorePlace(tmp_path / "state", "tests", "tests"))
    yield store
    store.close()


def test_a_lease_says_who_holds_it_and_ends_with_its_release(store):
    grant = store.take(always)
    (held,) = grant.leases
    assert grant.answer == 0
    assert store.live() == (held.lease,)
    assert (held.lease.pid, held.lease.memory_bytes) == (os.getpid(), 1)
    assert held.lease.user
    assert held.lease.taken_at > 1.6e9
    held.release()
    held.release()
    assert store.live() == ()
    assert list((store.place.path / "locks").iterdir()) == []


def test_a_lease_lives_as_long_as_the_last_process_under_it(store):
    """The wrapper may die; the child that inherited the lock keeps the lease."""
    (held,) = store.take(always).leases
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(held.lock_fd,),
    )
    held.release()
    assert len(store.live()) == 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    assert store.live() == ()


def test_a_holder_that_was_killed_leaves_nothing(store):
    code = TAKER.replace("held.release()", "sys.stdin.read()")
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.place.path), str(Path(__file__).parent), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"took 0\n"
    assert len(store.live()) == 1
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert store.live() == ()


def test_many_processes_never_hold_more_than_there_is(store):
    """Every decision sees all live leases: capacity 3 is never exceeded by 6 processes."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(store.place.path), str(Path(__file__).parent), "40"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    lines = [line for child in children for line in child.communicate(timeout=90)[0].splitlines()]
    assert all(child.returncode == 0 for child in children)
    assert len(lines) == 240
    assert all(int(line.split()[1]) <= CAPACITY for line in lines)
    assert store.live() == ()


def test_a_decision_that_fails_takes_nothing(store):
    def refuse(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.take(refuse)
    (held,) = store.take(always).leases
    assert store.live() == (held.lease,)
    held.release()


def test_leases_of_one_decision_are_taken_together(store):
    grant = store.take(lambda live: ("two", [lease(), lease()]))
    assert len({held.lease.lease_id for held in grant.leases}) == 2
    for held in grant.leases:
        held.release()


def test_a_file_that_is_no_database_is_named(tmp_path):
    place = StorePlace(tmp_path, "tests", "tests")
    (tmp_path / f"leases-{boot_id()}.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"leases-.*sqlite"):
        LeaseStore(place)


def test_a_place_that_cannot_be_made_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="EXO_GPU_STATE"):
        LeaseStore(StorePlace(tmp_path / "file" / "below", "tests", "tests"))


def test_a_lost_locks_folder_is_named(store):
    (store.place.path / "locks").rmdir()
    with pytest.raises(StoreError, match="cannot be locked"):
        store.take(always)


def test_a_closed_store_says_so(tmp_path):
    import sqlite3

    store = LeaseStore(StorePlace(tmp_path, "tests", "tests"))
    store.close()
    with pytest.raises((StoreError, sqlite3.ProgrammingError)):
        store.live()


def test_a_network_file_system_is_refused_by_name(tmp_path, monkeypatch):
    from exo.gpu.execution import state_directory

    mounts = tmp_path / "mounts"
    mounts.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path}/net nfs4 rw 0 0\nshort\n")
    (tmp_path / "net").mkdir()
    assert file_system(tmp_path / "net", mounts) == "nfs4"
    assert file_system(Path("/"), mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "no such file") is None
    monkeypatch.setattr(state_directory, "file_system", lambda path: "nfs4")
    with pytest.raises(StoreError, match="nfs4"):
        prepare(StorePlace(tmp_path / "net", "tests", "tests"))


def test_where_the_store_is(tmp_path):
    place = choose_place({"EXO_GPU_STATE": str(tmp_path)})
    assert (place.path, place.reason) == (tmp_path, "EXO_GPU_STATE")
    shared = choose_place({})
    assert "all users" in shared.shared_by
    assert shared.path.is_absolute()


def test_everybody_may_write_in_a_folder_that_we_make(tmp_path):
    folder = prepare(StorePlace(tmp_path / "made", "tests", "tests"))
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / "locks").stat().st_mode & 0o7777 == 0o1777
    prepare(StorePlace(folder, "tests", "tests"))


def test_a_boot_has_a_name_even_without_proc(tmp_path):
    assert boot_id()
    assert boot_id(tmp_path / "none").startswith("boot-")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_share_one_store(tmp_path_factory):
    """The second user neither owns the files nor may delete them, and still takes and releases."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        place = StorePlace(folder / "store", "tests", "tests")
        store = LeaseStore(place)
        (held,) = store.take(always).leases
        folder.chmod(0o755)
        code = "import os, sys; os.setgid(65534); os.setuid(65534)\n" + TAKER.replace(
            "sys.path.insert(0, sys.argv[2])", "pass"
        )
        preload = "import sys\nsys.path.insert(0, sys.argv[2])\nimport test_lease_store\n"
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                preload + code,
                str(place.path),
                str(Path(__file__).parent),
                "2",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.splitlines() == ["took 1", "took 1"], done.stderr
        assert store.live() == (held.lease,)
        held.release()
        store.close()
    finally:
        shutil.rmtree(folder)


def test_an_interrupt_within_a_decision_leaves_the_store_free(store):
    """Ctrl-C at the wrong moment must not lock out every other process of the machine."""

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.take(interrupted)
    other = LeaseStore(store.place)
    (held,) = other.take(always).leases
    held.release()
    other.close()
