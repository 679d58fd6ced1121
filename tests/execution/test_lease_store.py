"""Leases across processes: never more than there is, and gone with the last process under them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from exo.gpu.execution.lease_store import LeaseStore
from exo.gpu.execution.state_directory import (
    StorePlace,
    boot_id,
    choose_place,
    prepare,
)
from exo.gpu.file_systems import file_system
from exo.gpu.vocabulary.errors import InvalidValue, StoreError
from exo.gpu.vocabulary.lease import Lease

CAPACITY = 3

TAKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_lease_store as here
store = here.LeaseStore(here.StorePlace(Path(sys.argv[1]), "", ""))
for _ in range(int(sys.argv[3])):
    seen, leases = here.take(store, here.up_to_capacity)
    print("took" if leases else "full", seen, flush=True)
    for held in leases:
        held.release()
"""


def lease(memory_bytes: int = 1) -> Lease:
    return Lease(
        lease_id="",
        device_id="cuda:0",
        hardware_id="GPU-0",
        memory_pool="host",
        memory_bytes=memory_bytes,
    )


def up_to_capacity(live):
    return len(live), [lease()] if len(live) < CAPACITY else []


def always(live):
    return len(live), [lease()]


def take(store, decide, **terms):
    """What every taker does: look, decide, look again at who lives where the answer is no, add."""
    with store.transaction() as book:
        answer, wanted = decide(book.leases)
        if not wanted and book.prune():
            answer, wanted = decide(book.leases)
        return answer, tuple(book.add(one, **terms) for one in wanted)


@pytest.fixture
def store(tmp_path):
    store = LeaseStore(StorePlace(tmp_path / "state", "tests", "tests"))
    yield store
    store.close()


def test_a_lease_says_who_holds_it_and_ends_with_its_release(store):
    seen, (held,) = take(store, always)
    assert seen == 0
    assert store.live() == (held.lease,)
    assert (held.lease.pid, held.lease.memory_bytes) == (os.getpid(), 1)
    assert held.lease.user
    assert held.lease.taken_at > 1.6e9
    held.release()
    held.release()
    assert store.live() == ()
    assert list(home(store).glob("locks/*")) == list(home(store).glob("ended/*")) == []


def test_a_lease_lives_as_long_as_the_last_process_under_it(store):
    """The wrapper may die; the child that inherited the lock keeps the lease."""
    _, (held,) = take(store, always)
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
        take(store, refuse)
    _, (held,) = take(store, always)
    assert store.live() == (held.lease,)
    held.release()


def test_leases_of_one_decision_are_taken_together(store):
    _, leases = take(store, lambda live: ("two", [lease(), lease()]))
    assert len({held.lease.lease_id for held in leases}) == 2
    for held in leases:
        held.release()


def home(store):
    return store.place.path / f"boot-{boot_id()}"


def test_a_ledger_that_is_no_database_is_an_error_that_says_what_to_do(store):
    """A damaged ledger must never read as an empty one: everything would be given twice."""
    _, (held,) = take(store, always)
    (home(store) / "ledger.sqlite").write_bytes(b"garbage" * 1000)
    for opener in (lambda: LeaseStore(store.place), store.live):
        with pytest.raises(StoreError, match="end the work that holds leases, then delete"):
            opener()
    os.close(held.lock_fd)


@pytest.mark.parametrize("record", [b"", b"{", b'{"lease_id": 3}', b"\xff\xfe"])
def test_a_damaged_record_of_one_who_lives_is_an_error_and_of_a_dead_one_is_nothing(store, record):
    _, (held,) = take(store, always)
    with sqlite3.connect(home(store) / "ledger.sqlite") as connection:
        connection.execute("UPDATE leases SET record = ?", (record,))
    connection.close()
    with pytest.raises(StoreError, match="is damaged") as caught:
        store.live()
    assert held.lease.lease_id in str(caught.value)
    os.close(held.lock_fd)
    assert store.live() == ()


def test_a_ledger_that_another_program_keeps_locked_is_an_error_that_says_so(store, monkeypatch):
    from exo.gpu import database

    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    impatient = LeaseStore(store.place)
    other = sqlite3.connect(home(store) / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        impatient.live()
    other.execute("ROLLBACK")
    other.close()
    assert impatient.live() == ()
    impatient.close()


def test_a_place_that_cannot_be_made_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="EXO_GPU_STATE"):
        LeaseStore(StorePlace(tmp_path / "file" / "below", "tests", "tests"))


def test_a_lost_locks_folder_is_named(store):
    (home(store) / "locks").rmdir()
    with pytest.raises(StoreError, match="cannot be made"):
        take(store, always)


def test_a_store_that_lost_a_part_says_what_to_do(store):
    """Half a store is none: it would look empty."""
    (home(store) / "turn").unlink()
    with pytest.raises(StoreError, match="then delete that directory"):
        LeaseStore(store.place)


def test_a_closed_store_says_so(tmp_path):
    store = LeaseStore(StorePlace(tmp_path, "tests", "tests"))
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.live()


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_lease_for_no_memory_is_no_lease(size):
    with pytest.raises(InvalidValue, match="memory_bytes"):
        lease(size)


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_is_a_part_of_one_device(share):
    with pytest.raises(InvalidValue, match="share"):
        msgspec.structs.replace(lease(), share=share)


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
        prepare(StorePlace(tmp_path / "net", "tests", "tests"), "boot", lambda fresh: None)
    assert list((tmp_path / "net").iterdir()) == []


def test_where_the_store_is(tmp_path):
    place = choose_place({"EXO_GPU_STATE": str(tmp_path)})
    assert (place.path, place.reason) == (tmp_path, "EXO_GPU_STATE")
    shared = choose_place({})
    assert "all users" in shared.shared_by
    assert shared.path.is_absolute()


def test_everybody_may_write_in_a_store_that_we_make(store):
    """In a sticky folder nobody removes another's; hints are for anybody to clear away."""
    assert store.place.path.stat().st_mode & 0o7777 == 0o1777
    modes = {path.name: path.stat().st_mode & 0o7777 for path in home(store).iterdir()}
    assert modes == {
        "locks": 0o1777,
        "bells": 0o1777,
        "ended": 0o777,
        "tickets": 0o777,
        "queue": 0o777,
        "turn": 0o666,
        "ledger.sqlite": 0o666,
        "ledger.sqlite-journal": 0o666,
    }
    assert home(store).stat().st_mode & 0o7777 == 0o1777


def test_a_store_appears_whole_or_not_at_all(tmp_path):
    """Of many who make it at once one succeeds, and all have the same; a failure leaves nothing."""
    place = StorePlace(tmp_path / "state", "tests", "tests")
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: LeaseStore(place), range(8)))
    _, (held,) = take(stores[0], always)
    assert all(store.live() == (held.lease,) for store in stores)
    held.release()
    for store in stores:
        store.close()

    def fail(fresh):
        (fresh / "half").touch()
        raise OSError("no room")

    other = StorePlace(tmp_path / "other", "tests", "tests")
    with pytest.raises(StoreError, match="no room"):
        prepare(other, "boot", fail)
    assert list(other.path.iterdir()) == []
    assert [path.name for path in place.path.iterdir()] == [f"boot-{boot_id()}"]


def test_the_files_belong_to_whoever_made_the_directory(store):
    """So Linux lets others open SQLite's journal in a sticky directory (fs.protected_regular)."""
    owner = home(store).stat().st_uid
    assert {path.stat().st_uid for path in home(store).rglob("*")} == {owner}


def test_a_boot_has_a_name_even_without_proc(tmp_path):
    assert boot_id()
    assert boot_id(tmp_path / "none").startswith("boot-")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_share_one_store(tmp_path_factory):
    """The second user neither owns the files nor may delete them, and still takes and releases."""
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        place = StorePlace(folder / "store", "tests", "tests")
        store = LeaseStore(place)
        _, (held,) = take(store, always)
        folder.chmod(0o755)
        code = "import os, sys; os.setgid(65534); os.setuid(65534)\n" + TAKER.replace(
            "sys.path.insert(0, sys.argv[2])", "pass"
        )
        # What is loaded later must not lie in a folder of the first user alone.
        preload = "import getpass, sys\nsys.path.insert(0, sys.argv[2])\nimport test_lease_store\n"
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
        take(store, interrupted)
    other = LeaseStore(store.place)
    _, (held,) = take(other, always)
    held.release()
    other.close()


class Hands:
    """A clock that a test moves."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def test_the_wall_clock_decides_nothing(tmp_path):
    """Rule: a step of the wall clock, however far, neither ends a lease nor keeps one alive."""
    wall, clock = Hands(), Hands()
    store = LeaseStore(StorePlace(tmp_path, "tests", "tests"), clock=clock, wall=wall)
    _, (lasting,) = take(store, always)
    _, (expiring,) = take(store, always, lasts_seconds=60.0)
    for wall.seconds in (4e9, 0.0):
        assert len(store.live()) == 2
    assert lasting.lease.taken_at == 1000.0
    clock.seconds += 59
    assert len(store.live()) == 2
    clock.seconds += 2
    assert store.live() == (lasting.lease,)
    expiring.release()
    lasting.release()
    store.close()


def test_a_lease_on_a_cards_own_memory_stays_until_the_memory_was_awaited(tmp_path):
    """Rule: an ended lease still counts; without anybody to see the memory, for so long only."""
    clock = Hands()
    store = LeaseStore(StorePlace(tmp_path, "tests", "tests"), clock=clock)
    own = msgspec.structs.replace(lease(), memory_pool="GPU-0", used_before_bytes=0)
    _, (held,) = take(store, lambda live: (0, [own]))
    clock.seconds += 5
    held.release()
    clock.seconds += 1
    (settling,) = store.live()
    assert (settling.settling, settling.ended_seconds) == (True, 1005.0)
    clock.seconds += 60
    assert store.live() == ()
    store.close()


def test_an_orphaned_lock_file_is_swept(store):
    """Rule: who died between making the file and the end of the transaction leaves nothing."""
    (home(store) / "locks" / "0123456789ab").touch()
    other = LeaseStore(store.place)
    assert other.live() == ()
    assert not list(home(store).glob("locks/*"))
    other.close()


def test_word_of_an_end_that_is_not_true_changes_nothing(store):
    """Rule: hints are anybody's; whether a lease is over says its lock alone."""
    _, (held,) = take(store, always)
    (home(store) / "ended" / f"{held.lease.lease_id} 5").touch()
    (home(store) / "ended" / "nonsense").touch()
    assert store.live() == (held.lease,)
    assert not list(home(store).glob("ended/*"))
    held.release()


def test_a_fork_does_not_use_its_parents_connection(store):
    """Rule: a forked child opens the store for itself, and a lease lives in both."""
    _, (held,) = take(store, always)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = b"no"
        try:
            answer = b"%d" % len(store.live())
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"1"
    os.close(read)
    os.waitpid(child, 0)
    assert store.live() == (held.lease,)
    held.release()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_two_pid_namespaces_share_one_store(store):
    """Rule: process ids mean nothing in another namespace; locks do."""
    wrap = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*wrap, "true"], capture_output=True).returncode:
        pytest.skip("no new pid namespace may be made here")
    _, (held,) = take(store, always)
    code = TAKER.replace("held.release()", "print(os.getpid(), flush=True); sys.stdin.read()")
    words = [sys.executable, "-c", "import os\n" + code, str(store.place.path)]
    child = subprocess.Popen(
        [*wrap, *words, str(Path(__file__).parent), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"took 1\n"
    assert int(child.stdout.readline()) < 10, "it has a small pid of its own"
    assert len(store.live()) == 2
    child.kill()
    child.wait()
    assert child.stdout.read() == b""  # which the one within closes when it dies of it
    child.stdin.close()
    child.stdout.close()
    while len(store.live()) > 1:  # it closes the lock a moment later
        os.sched_yield()
    assert store.live() == (held.lease,)
    held.release()


def test_what_an_expired_lease_was_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clock = Hands()
    store = LeaseStore(StorePlace(tmp_path, "tests", "tests"), clock=clock)
    one = msgspec.structs.replace(lease(), holder="a training")
    _, (held,) = take(store, lambda live: (0, [one]), lasts_seconds=1.0)
    clock.seconds += 2
    assert store.live() == ()
    assert "a training has expired" in caplog.text
    held.release()
    store.close()
