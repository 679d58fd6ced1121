"""Cordons across processes: one a device, for everybody, until lifted or over, whatever dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from exo.gpu.execution.cordon_store import FILE_NAME, CordonStore
from exo.gpu.execution.state_directory import StorePlace
from exo.gpu.vocabulary.errors import StoreError
from exo.gpu.vocabulary.health import BY_HEALTH, Cordon

NOW = 1_700_000_000.0

# Cordons and lifts devices in turn, until it is killed or has done so often.
WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_cordon_store as here
store = here.store_at(Path(sys.argv[1]))
print("ready", flush=True)
for turn in range(int(sys.argv[4])):
    store.put(here.cordon(f"GPU-{sys.argv[3]}-{turn % 3}", by=sys.argv[3]))
    if turn % 3 == 2:
        store.lift(f"GPU-{sys.argv[3]}-0")
"""


def store_at(folder: Path, **options) -> CordonStore:
    return CordonStore(StorePlace(folder, "tests", "tests"), **options)


def cordon(hardware_id: str = "GPU-0", *, by: str = "alice", **fields) -> Cordon:
    values = {"device_id": "cuda:0", "why": "its fan is loud", "since": NOW, **fields}
    return Cordon(hardware_id=hardware_id, by=by, **values)


def start_worker(folder: Path, name: str, turns: int) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", WORKER, str(folder), here, name, str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.fixture
def store(tmp_path):
    return store_at(tmp_path / "state")


def test_a_cordon_is_seen_by_all_until_it_is_lifted(store):
    """Rule: another opening of the store has it, and lifting is harmless twice."""
    kept = store.put(cordon())
    assert kept == cordon()
    assert store_at(store.path.parent.parent).live() == (kept,)
    assert store.lift("GPU-1") is None
    assert store.lift("GPU-0") == kept
    assert store.lift("GPU-0") is None
    assert store.live() == ()


def test_where_nobody_cordoned_nothing_is_made(store):
    """Rule: looking and lifting leave no trace on the disk."""
    assert store.live() == ()
    assert store.lift("GPU-0") is None
    assert not store.path.parent.exists()


def test_a_device_has_one_cordon_the_last(store):
    """Rule: cordoning again changes reason and time."""
    store.put(cordon())
    store.put(cordon(why="and it smells", until=NOW + 1e9))
    assert [one.why for one in store.live()] == ["and it smells"]


def test_a_cordon_whose_time_is_up_is_none(tmp_path):
    """Rule: it vanishes by itself, for everybody, and from the file at the next change."""
    now = [NOW]
    store = store_at(tmp_path, clock=lambda: now[0])
    store.put(cordon(until=NOW + 60))
    store.put(cordon("GPU-1"))
    now[0] += 59.9
    assert len(store.live()) == 2
    now[0] += 0.1
    assert [one.hardware_id for one in store.live()] == ["GPU-1"]
    assert store.lift("GPU-0") is None
    store.put(cordon("GPU-2"))
    with sqlite3.connect(store.path) as connection:
        rows = connection.execute("SELECT hardware_id FROM cordons ORDER BY 1").fetchall()
    connection.close()
    assert rows == [("GPU-1",), ("GPU-2",)]


def test_health_never_takes_the_place_of_a_person(store):
    """Rule: a person's cordon outlives what health finds, and a person's word replaces health's."""
    by_health = cordon(by=BY_HEALTH, why="XID 79")
    assert store.put(by_health) == by_health
    assert store.put(cordon()) == cordon()
    assert store.put(by_health) == cordon()
    assert store.live() == (cordon(),)


def test_only_a_cordon_by_health_is_lifted_by_a_probe(store):
    """Rule: what a person set stays."""
    store.put(cordon())
    store.put(cordon("GPU-1", by=BY_HEALTH))
    assert store.lift("GPU-0", by_health_only=True) is None
    assert store.lift("GPU-1", by_health_only=True) is not None
    assert store.live() == (cordon(),)


def test_a_boot_ends_what_health_set_and_nothing_else(tmp_path):
    """Rule: a restart resets the device; a person's reason may still hold."""
    boot = ["one"]
    store = store_at(tmp_path, boot=lambda: boot[0])
    store.put(cordon())
    store.put(cordon("GPU-1", by=BY_HEALTH))
    boot[0] = "two"
    assert store.live() == (cordon(),)


def test_processes_that_race_lose_nothing(tmp_path):
    """Rule: four processes that cordon and lift at once leave exactly what each did last."""
    names = ("a", "b", "c", "d")
    workers = [start_worker(tmp_path, name, 60) for name in names]
    for worker in workers:
        worker.communicate(timeout=90)
    assert [worker.returncode for worker in workers] == [0] * 4
    kept = [one.hardware_id for one in store_at(tmp_path).live()]
    assert kept == [f"GPU-{name}-{place}" for name in names for place in (1, 2)]


def test_a_process_that_is_killed_in_the_middle_of_writing_damages_nothing(tmp_path):
    """Rule: after kill -9 the store opens, and others write at once."""
    store = store_at(tmp_path)
    store.put(cordon())
    for _ in range(3):
        worker = start_worker(tmp_path, "a", 100_000)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        while not any(one.by == "a" for one in store.live()):
            assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        assert cordon() in store.live()
        for place in range(3):
            store.lift(f"GPU-a-{place}")
        assert store.live() == (cordon(),)


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database_is_named_with_the_way_out(store, content):
    """Rule: a damaged file is an error that says which file, and what to do."""
    store.path.parent.mkdir(parents=True)
    store.path.write_bytes(content)
    for call in (store.live, lambda: store.put(cordon()), lambda: store.lift("GPU-0")):
        with pytest.raises(StoreError, match=rf"{FILE_NAME}.*removing the file") as caught:
            call()
        assert str(caught.value).count(FILE_NAME) == 1


def test_a_page_that_is_damaged_is_named(store):
    """Rule: a file that opens well and breaks while it is read is no exception out of SQLite."""
    for number in range(100):
        store.put(cordon(f"GPU-{number}"))
    content = bytearray(store.path.read_bytes())
    content[8192:] = b"x" * len(content[8192:])
    store.path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{FILE_NAME}.*cannot be read.*removing the file"):
        store.live()


def test_a_place_that_cannot_be_looked_at_is_named(tmp_path):
    """Rule: what the system refuses is an error of the store, for looking and for writing."""
    store = store_at(tmp_path / ("x" * 300))
    for call in (store.live, lambda: store.put(cordon())):
        with pytest.raises(StoreError, match="xxx"):
            call()


def test_a_record_that_is_no_cordon_is_named(store):
    """Rule: what somebody wrote there by hand is not taken on trust."""
    store.put(cordon())
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE cordons SET record = '{}'")
    connection.close()
    with pytest.raises(StoreError, match="no cordon"):
        store.live()


def test_a_removed_file_lifts_all_cordons(store):
    """Rule: even for one that has read it before."""
    store.put(cordon())
    assert store.live()
    store.path.unlink()
    assert store.live() == ()
    store.put(cordon("GPU-1"))
    assert [one.hardware_id for one in store.live()] == ["GPU-1"]


def test_a_file_that_somebody_holds_for_too_long_is_said(store, monkeypatch):
    """Rule: a wait for another's transaction has an end."""
    from exo.gpu import database

    store.put(cordon())
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        store.live()
    with pytest.raises(StoreError, match="locked"):
        store.put(cordon("GPU-1"))
    holder.close()
    assert store.live() == (cordon(),)


NOBODY = """
import os, sys
os.setgid(65534); os.setuid(65534)
from pathlib import Path
store = here.store_at(Path(sys.argv[1]))
print(*(one.hardware_id for one in store.live()))
try:
    store.put(here.cordon("GPU-2"))
except here.StoreError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("writable", [True, False])
def test_another_user_reads_and_writes_as_the_folder_allows(writable):
    """Rule: all users share the file; where only reading is allowed, reading works."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    folder.chmod(0o755)
    try:
        store = store_at(folder / "store")
        store.put(cordon())
        if not writable:
            store.path.chmod(0o644)
            store.path.parent.chmod(0o755)
        preload = "import sys\nsys.path.insert(0, sys.argv[2])\nimport test_cordon_store as here\n"
        command = [sys.executable, "-c", preload + NOBODY, folder / "store", Path(__file__).parent]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        lines = done.stdout.splitlines()
        assert lines[0] == "GPU-0", done.stderr
        if writable:
            assert [one.hardware_id for one in store.live()] == ["GPU-0", "GPU-2"]
        else:
            assert "readonly" in lines[1]
            assert str(store.path) in lines[1]
    finally:
        shutil.rmtree(folder)
