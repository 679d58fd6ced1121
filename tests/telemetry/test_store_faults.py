"""What goes wrong with a history: kills, full and read-only disks, damage, network disks."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from histories import START, plain

from exo.gpu.telemetry.store import file as store_file
from exo.gpu.telemetry.store.file import KEPT_DAMAGED
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.errors import StoreDamaged, StoreError

HERE = Path(__file__).parent
POINTS = 6000


def clock() -> float:
    return START + 3600


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


def child(program: str, *arguments: object, **options) -> subprocess.Popen[str]:
    """A process of its own that runs a program with the modules of these tests at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", program, str(HERE), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def counts(path, seconds: int = POINTS):
    """How many samples there are at each second."""
    with HistoryReader(path) as reader:
        return reader.series(
            "cuda:0", "power_watts", since=START, until=START + seconds, points=seconds
        ).count


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from histories import START, plain
from exo.gpu.telemetry.store.writer import HistoryWriter

index = int(sys.argv[3])
writer = HistoryWriter.open(Path(sys.argv[2]), clock=lambda: START + 3600)
while True:
    for _ in range(7):
        writer.add(plain("cuda:0", 5, start=START + index))
        index += 5
    if writer.flush():
        print(index, flush=True)
"""


def test_a_killed_writer_loses_what_was_not_flushed_and_nothing_else(path):
    """Rule: after kill -9 at any moment the file is whole, and holds every flushed sample once."""
    moments = random.Random(7)
    begin = 0
    for _ in range(6):
        writer = child(KILLED, path, begin)
        flushed = begin
        for _ in range(moments.randint(1, 12)):
            flushed = int(writer.stdout.readline())
        writer.kill()  # in the middle of adding and writing
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        flushed = int(rest[-1]) if rest else flushed
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        found = counts(path)
        begin = int(found.sum())
        assert found[:begin].tolist() == [1] * begin, "a prefix: no gap, nothing twice"
        # The second that was not told to be flushed: one batch of 35 at most.
        assert flushed <= begin <= flushed + 35
        # The next one goes on at a whole batch of five.
        assert begin % 5 == 0
    with HistoryWriter.open(path, clock=clock) as last:
        assert last.opened.set_aside is None
    assert counts(path).sum() == begin


FULL = """
import resource, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from histories import START, realistic
from exo.gpu.telemetry.store.writer import HistoryWriter

path = Path(sys.argv[2])
writer = HistoryWriter.open(path, clock=lambda: START + 3600)
samples = list(realistic("cuda:0", 900))
writer.add(samples[:300])
assert writer.flush()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
log = path.with_name(path.name + "-wal")
resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 5000, unlimited[1]))
writer.add(samples[300:])
assert not writer.flush()
print(writer.statistics.problem)
print(writer.statistics.waiting)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert writer.flush()
print(writer.statistics.problem)
writer.close()
"""


def test_a_full_disk_keeps_samples_waiting_and_loses_none(path):
    """Rule: where the disk takes no more, the reason is told, and all is written once it does."""
    writer = child(FULL, path, stderr=subprocess.PIPE)
    out, errors = writer.communicate(timeout=100)
    assert writer.returncode == 0, errors
    problem, waiting, after = out.splitlines()
    assert str(path) in problem
    assert waiting == "600"
    assert after == "None"
    assert "history is not written, and is tried again" in errors
    assert counts(path, 900).tolist() == [1] * 900


READ_ONLY = """
import os, sys
from pathlib import Path
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.vocabulary.errors import StoreError
import numpy, exo.gpu.telemetry.store.queries, contextvars
if os.getuid() == 0:
    os.setuid(65534)  # to root, nothing is read-only
for path in map(Path, sys.argv[2:]):
    try:
        HistoryWriter.open(path)
    except StoreError as error:
        print(error)
with HistoryReader(Path(sys.argv[2])) as reader:
    print(reader.find("cuda:0").device_id)
"""


def test_a_read_only_directory_is_named_and_can_be_read(tmp_path):
    """Rule: a place that cannot be written is an error with its name; what is there can be read."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="exo-"))  # pytest's own folders are closed to others
    try:
        path = folder / "history.sqlite"
        with HistoryWriter.open(path, clock=clock) as writer:
            writer.add(plain("cuda:0", 10))
        path.with_name(f"{path.name}.lock").unlink()
        folder.chmod(0o555)
        below = folder / "below" / "history.sqlite"
        reader = child(READ_ONLY, path, below)
        out, _ = reader.communicate(timeout=60)
        first, second, found = out.splitlines()
        assert str(path) in first
        assert str(below) in second
        assert "Permission denied" in first
        assert found == "cuda:0"
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def spoil_head(path: Path) -> None:
    path.write_bytes(b"this is no database" + path.read_bytes()[19:])


def spoil_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = b"\xa5" * 200
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [spoil_head, spoil_middle, cut])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path, spoil, caplog):
    """Rule: damage found at the start is told in the log and in the result, and costs no start."""
    with HistoryWriter.open(path, clock=clock) as writer:
        for part in range(40):
            writer.add(plain(f"cuda:{part}", 400))
    spoil(path)
    spoiled = path.read_bytes()
    with caplog.at_level(logging.WARNING), HistoryWriter.open(path, clock=clock) as writer:
        aside = writer.opened.set_aside
        writer.add(plain("cuda:0", 10))
    assert aside.name.startswith("history.sqlite.damaged-20231114T")
    assert aside.read_bytes() == spoiled
    assert str(aside) in caplog.text
    assert counts(path, 600).sum() == 10


def test_a_reader_tells_damage_and_touches_nothing(path):
    """Rule: only the writer sets aside."""
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 400))
    spoil_head(path)
    before = path.read_bytes()
    with pytest.raises(StoreDamaged, match=r"history\.sqlite"):
        HistoryReader(path)
    assert path.read_bytes() == before
    assert list(path.parent.glob("*damaged*")) == []


def test_damage_while_writing_costs_no_open_minute(path):
    """Rule: a file that breaks under the writer is set aside, and the open minutes go on in a new one."""
    writer = HistoryWriter.open(path, clock=clock)
    writer.add(plain("cuda:0", 30, start=START + 300))
    assert writer.flush()
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with path.open("r+b") as file:  # every page but the first, which stays in the writer's memory
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    writer.add(plain("cuda:0", 30, start=START + 330))
    assert writer.flush()
    assert writer.opened.set_aside is not None
    assert writer.close()
    assert counts(path, 400)[300:360].tolist() == [1] * 60


def test_one_unreadable_minute_is_skipped(path, caplog):
    """Rule: a damaged block costs its own minute, for readers and for a writer that merges."""
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 600))
    other = sqlite3.connect(path)
    key = other.execute("SELECT min(key) FROM blocks").fetchone()[0]
    other.execute("UPDATE blocks SET data = ? WHERE key = ?", (b"\x01nonsense", key))
    other.commit()
    other.close()
    assert counts(path, 600).tolist() == [0] * 60 + [1] * 540
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 1))
        writer.add(plain("other", 600, start=START + 6000))
    assert counts(path, 600).tolist() == [1] + [0] * 59 + [1] * 540
    assert "one minute are lost" in caplog.text


def test_only_some_damaged_files_are_kept(path):
    """Rule: a disk that spoils files does not fill up with them."""
    for number in range(KEPT_DAMAGED + 2):
        path.write_bytes(b"no database " * 500)
        with HistoryWriter.open(path, clock=lambda: START + number) as writer:  # noqa: B023
            kept = writer.opened.set_aside
    found = sorted(path.parent.glob("*.damaged-*"))
    assert len(found) == KEPT_DAMAGED
    assert kept in found


def test_a_file_deleted_under_the_writer_is_made_again(path):
    """Rule: after the next minute there is a file again, with what the open minutes hold."""
    writer = HistoryWriter.open(path, clock=clock)
    writer.add(plain("cuda:0", 600))
    assert writer.flush()
    path.unlink()
    for part in range(2):  # the first flush that ends a minute finds out
        writer.add(plain("cuda:0", 600, start=START + 600 * (part + 1)))
        assert writer.flush()
    assert writer.close()
    assert counts(path, 1800)[1560:].tolist() == [1] * 240


def test_on_a_network_file_system_there_is_no_write_ahead_log(path, monkeypatch, caplog):
    """Rule: there the journal is one that needs no shared memory, and the log warns."""
    monkeypatch.setattr(store_file, "file_system", lambda _: "nfs4")
    with HistoryWriter.open(path, clock=clock) as writer:
        assert writer.opened.network == "nfs4"
        writer.add(plain("cuda:0", 5))
        assert writer.flush()
        other = sqlite3.connect(path)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        other.close()
    assert "nfs4" in caplog.text
    assert counts(path, 10).sum() == 5


def test_a_failed_opening_frees_the_lock(path):
    """Rule: whoever could not open the file keeps nobody else from it."""
    path.mkdir()
    with pytest.raises(StoreError, match=r"history\.sqlite"):
        HistoryWriter.open(path)
    path.rmdir()
    HistoryWriter.open(path, clock=clock).close()


READERS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from histories import START
from exo.gpu.telemetry.store.reader import HistoryReader

last = 0
while last < 1500:
    with HistoryReader(Path(sys.argv[2])) as reader:
        found = reader.series("cuda:0", "power_watts", since=START, until=START + 3000, points=3000)
    count = int(found.count.sum())
    assert count >= last, (count, last)
    assert found.count[:count].tolist() == [1] * count
    last = count
print(last)
"""


def test_any_number_of_readers_see_whole_states_while_it_is_written(path):
    """Rule: readers in other processes never see a sample twice, a gap, or less than before."""
    writer = HistoryWriter.open(path, clock=clock)
    writer.add(plain("cuda:0", 1))
    assert writer.flush()
    readers = [child(READERS, path) for _ in range(3)]
    index = 1
    while any(reader.poll() is None for reader in readers) and index < 2900:
        writer.add(plain("cuda:0", 11, start=START + index))
        index += 11
        assert writer.flush()
        time.sleep(0)
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0
        assert int(out) >= 1500
    assert writer.close()
