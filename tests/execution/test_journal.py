"""A journal on disk: what was written is read, what was not written whole is cut, nothing is invented."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo.gpu.execution.job_folder import journals, prune, read_ends
from exo.gpu.execution.journal import (
    Journal,
    decode_record,
    encode_record,
    read_journal,
    read_records,
)
from exo.gpu.vocabulary.errors import JournalError
from exo.gpu.vocabulary.journal import (
    VERSION,
    ChunkEnded,
    ItemBegun,
    ItemEnded,
    JobBegun,
    JobEnded,
    JobKind,
    JobResumed,
)

MOMENTS = st.floats(0, 2e9)
ITEMS = st.integers(0, 2**31 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
DEVICES = st.none() | TEXTS
RECORDS = st.one_of(
    st.builds(ItemBegun, item=ITEMS, at=MOMENTS),
    st.builds(JobResumed, at=MOMENTS, pid=st.integers(0, 2**31)),
    st.builds(
        ItemEnded,
        item=ITEMS,
        ending=st.sampled_from(["succeeded", "failed", "died"]),
        cause=TEXTS,
        device_id=DEVICES,
        slot=st.integers(0, 99),
        attempt=st.integers(1, 9),
        final=st.booleans(),
        started_at=MOMENTS,
        ended_at=MOMENTS,
        exit_status=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        digest=st.integers(0, 2**32 - 1),
    ),
    st.builds(
        ChunkEnded,
        items=st.lists(st.tuples(ITEMS, ITEMS), max_size=4).map(tuple),
        failed=st.lists(ITEMS, max_size=4).map(tuple),
        device_id=DEVICES,
        slot=st.integers(0, 99),
        started_at=MOMENTS,
        ended_at=MOMENTS,
    ),
    st.builds(
        JobEnded,
        at=MOMENTS,
        complete=st.booleans(),
        succeeded=ITEMS,
        failed=ITEMS,
        started_again=ITEMS,
        devices=st.dictionaries(TEXTS, st.tuples(ITEMS, MOMENTS), max_size=3),
    ),
    st.builds(
        JobBegun,
        job_id=TEXTS,
        kind=st.sampled_from(JobKind),
        templates=st.dictionaries(TEXTS, TEXTS, max_size=3),
        name=TEXTS,
        directory=TEXTS,
        total=st.none() | ITEMS,
        started_at=MOMENTS,
        pid=ITEMS,
    ),
)

HEADER = JobBegun(
    job_id="20260301-140502-3f9a",
    kind=JobKind.COMMANDS,
    templates={"": "echo {}"},
    started_at=1.0,
    pid=1,
)


def success(item):
    return ItemEnded(item, "succeeded", "", "cuda:0", 0, 1, True, 1.0, 2.0, 0, None, item)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.journal"


def write(path, *records, header=HEADER):
    with Journal(path) as journal:
        journal.begin(header)
        for record in records:
            journal.write(record)


def successes(path):
    found, _ = read_journal(path)
    return {item for item in range(20) if found.tally.has_succeeded(item)}


@given(RECORDS)
def test_a_record_comes_back_as_it_was(record):
    """Rule: one line each, whatever text is in it, and the same record from it."""
    line = encode_record(record)
    assert line.count(b"\n") == 1
    assert decode_record(line[:-1]) == record


@given(RECORDS, st.data())
def test_a_changed_line_is_no_record(record, data):
    """Rule: any single bit that changes makes a line damaged, never another record."""
    line = bytearray(encode_record(record)[:-1])
    bit = data.draw(st.integers(0, len(line) * 8 - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert decode_record(bytes(line)) is None


@given(st.binary(max_size=100))
def test_bytes_that_are_no_record_are_damaged(line):
    """Rule: whatever stands in a line, reading it raises nothing."""
    assert decode_record(line) is None


@pytest.mark.parametrize("cut", range(1, len(encode_record(success(2))) + 1))
def test_a_last_record_that_is_cut_anywhere_is_cut_off(cut, path):
    """Rule: wherever the last write broke off, all before it stands and it does not count."""
    write(path, success(0), success(1), success(2))
    whole = path.read_bytes()
    os.truncate(path, len(whole) - cut)
    assert successes(path) == {0, 1}
    with Journal(path) as journal:
        found = journal.recover()
        assert found.tail_bytes == len(encode_record(success(2))) - cut
        assert found.damaged_lines == ()
        journal.write(success(3))
    assert successes(path) == {0, 1, 3}
    assert read_journal(path)[0].tail_bytes == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_never_makes_a_success(data, path):
    """Rule: damage anywhere behind the first line loses records, and invents none; it is named."""
    write(path, *(success(item) for item in range(5)))
    content = bytearray(path.read_bytes())
    first = content.index(b"\n") + 1
    place = data.draw(st.integers(first * 8, len(content) * 8 - 1))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    found, _ = read_journal(path)
    kept = {item for item in range(20) if found.tally.has_succeeded(item)}
    assert kept < set(range(5))
    assert found.tail_bytes or found.damaged_lines


def test_damage_in_the_middle_is_named_and_the_rest_stands(path):
    """Rule: each line stands for itself: one that is damaged is skipped and told by its number."""
    write(path, success(0), success(1), success(2))
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:-1] + b"!"
    path.write_bytes(b"\n".join(lines))
    with Journal(path) as journal:
        found = journal.recover()
    assert found.damaged_lines == (3,)
    assert successes(path) == {0, 2}


@pytest.mark.parametrize(
    "content",
    [b"no journal\n", b"\n", encode_record(success(1)), encode_record(HEADER)[:-9] + b"\n"],
)
def test_what_does_not_begin_as_a_journal_is_refused(content, path):
    """Rule: a file whose first line is not a job's is left as it is."""
    path.write_bytes(content)
    with Journal(path) as journal, pytest.raises(JournalError, match="no journal"):
        journal.recover()
    assert path.read_bytes() == content
    with pytest.raises(JournalError, match="no journal"):
        read_ends(path)


def test_a_journal_of_a_later_release_is_refused(path):
    """Rule: what may mean something else is not guessed at."""
    later = JobBegun(
        **{name: getattr(HEADER, name) for name in HEADER.__struct_fields__}
        | {"version": VERSION + 1}
    )
    write(path, header=later)
    with pytest.raises(JournalError, match="later release"):
        read_journal(path)


def test_one_process_at_a_time(path):
    """Rule: a journal that is being written is in use, also for a process that would begin anew."""
    with Journal(path) as journal:
        journal.begin(HEADER)
        assert read_journal(path)[1]
        with pytest.raises(JournalError, match="in use"):
            Journal(path)
    assert not read_journal(path)[1]
    Journal(path).close()


def test_a_killed_writer_leaves_every_record_and_no_lock(path):
    """Rule: once a record is written it outlives the process, however that ends."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from test_journal import HEADER, success\n"
        "from exo.gpu.execution.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.begin(HEADER)\n"
        "for item in range(7): journal.write(success(item))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = os.path.dirname(__file__)
    environ = os.environ | {"PYTHONPATH": here}
    done = subprocess.run([sys.executable, "-c", script, str(path)], env=environ, check=False)
    assert done.returncode == -9
    assert successes(path) == set(range(7))
    with Journal(path) as journal:
        assert journal.recover().tail_bytes == 0


def test_a_record_that_does_not_fit_leaves_nothing(path):
    """Rule: where the disk takes no more, the writer is told and the journal stays sound."""
    write(path, success(0))
    size = path.stat().st_size
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from test_journal import success\n"
        "from exo.gpu.execution.journal import Journal\n"
        "from exo.gpu.vocabulary.errors import JournalError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "try: journal.write(success(1))\n"
        "except JournalError as error: print(error)\n"
    )
    environ = os.environ | {"PYTHONPATH": os.path.dirname(__file__), "PYTHONDONTWRITEBYTECODE": "1"}
    for room in (0, 10):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(size + room)],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "cannot be written" in done.stdout
        assert path.stat().st_size == size
    assert successes(path) == {0}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    """Rule: the message names the file and why."""
    with pytest.raises(JournalError, match=r"missing.*No such file"):
        Journal(tmp_path / "missing" / "a.journal")
    with pytest.raises(JournalError, match="cannot be read"):
        read_journal(tmp_path / "missing.journal")


def test_a_synced_journal_holds_the_same(path):
    """Rule: syncing changes when a record is safe, not what is recorded."""
    with Journal(path, sync=True) as journal:
        journal.begin(HEADER)
        journal.write(success(4))
    assert successes(path) == {4}


def test_a_line_without_an_end_is_bounded(path, monkeypatch):
    """Rule: damage without a line end costs no more memory than a bound, and hides nothing behind it."""
    monkeypatch.setattr("exo.gpu.execution.journal._LONGEST_LINE_BYTES", 64)
    monkeypatch.setattr("exo.gpu.execution.journal._READ_BYTES", 32)
    header = encode_record(HEADER)
    path.write_bytes(header + b"x" * 500 + b"\n" + encode_record(success(3)))
    monkeypatch.setattr("exo.gpu.execution.journal._LONGEST_LINE_BYTES", len(header))
    descriptor = os.open(path, os.O_RDONLY)
    read = list(read_records(descriptor))
    os.close(descriptor)
    assert [record is None for _, _, record in read] == [False, True, False]
    assert read[-1][1] == path.stat().st_size


def test_old_journals_go_and_live_ones_stay(tmp_path, monkeypatch):
    """Rule: the newest stay, up to a number, an age and a size; a running job's is never removed."""
    monkeypatch.setattr("exo.gpu.execution.job_folder.KEPT_JOBS", 3)
    for number in range(6):
        write(tmp_path / f"2026030{number}-000000-aaaa.journal")
    (tmp_path / "20260101-000000-aaaa.journal").symlink_to(tmp_path / "gone")
    oldest = tmp_path / "20260300-000000-aaaa.journal"
    now = oldest.stat().st_mtime
    with Journal(oldest):
        prune(tmp_path, now)
        assert [path.name[7] for path in journals(tmp_path)] == ["5", "4", "3", "0"]
    prune(tmp_path, now)
    assert len(journals(tmp_path)) == 3
    prune(tmp_path, now + 40 * 86400)
    assert journals(tmp_path) == []


def test_the_ends_of_a_journal_tell_how_it_is(path):
    """Rule: the first and the last record are found without reading what is between."""
    end = JobEnded(at=5.0, complete=True, succeeded=1, failed=0, started_again=0, devices={})
    write(path, success(0), end)
    assert read_ends(path) == (HEADER, end, False)
    with path.open("ab") as file:
        file.write(b"half a rec")
    assert read_ends(path).ended is None
