"""Whose file it is and of which version: older ones are brought up to date, others are left alone."""

from __future__ import annotations

import sqlite3

import pytest
from histories import START, plain

from exo.gpu.telemetry.store.reader import HistoryReader
from exo.gpu.telemetry.store.schema import MIGRATIONS, VERSION, migrate
from exo.gpu.telemetry.store.writer import HistoryWriter
from exo.gpu.vocabulary.errors import StoreError, StoreTooNew


def clock() -> float:
    return START + 3600


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.sqlite"


@pytest.mark.parametrize("version", range(VERSION))
def test_older_files_are_brought_up_to_date(path, version):
    """Rule: a file of each older version opens with all that was in it; a reader waits for that."""
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 400))
    old = sqlite3.connect(path)
    old.execute("DROP TABLE events")  # what the last step added
    old.execute(f"PRAGMA user_version={version}")
    if version == 0:
        old.execute("PRAGMA application_id=0")
        for table in ("devices", "pending", "blocks", "minutes", "hours"):
            old.execute(f"DROP TABLE {table}")
    old.commit()
    old.close()
    with pytest.raises(StoreError, match="older release"):
        HistoryReader(path)
    with HistoryWriter.open(path, clock=clock) as writer:
        assert writer.opened.migrated_from == (version or None)
    with HistoryReader(path) as reader:
        assert reader.events() == ()
        assert bool(reader.devices()) == (version > 0)
        if version:
            series = reader.series("cuda:0", "power_watts", since=START, until=START + 400)
            assert series.count.sum() == 400


def test_each_step_starts_from_the_one_before(tmp_path):
    """Rule: the written steps, one after the other, make the tables of a new file."""
    paths = tmp_path / "new.sqlite", tmp_path / "steps.sqlite"
    for place in paths:
        connection = sqlite3.connect(place, isolation_level=None)
        if place == paths[1]:
            for statement in MIGRATIONS[0]:
                connection.execute(statement)
            connection.execute("PRAGMA user_version=1")
            connection.execute(f"PRAGMA application_id={int.from_bytes(b'exoG', 'big')}")
        assert migrate(connection, place) == (1 if place == paths[1] else 0)
        connection.close()
    new, steps = (
        sqlite3.connect(place).execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall()
        for place in paths
    )
    assert new == steps


def test_a_later_release_is_refused_by_name_and_not_touched(path):
    """Rule: a file of a newer version is neither changed nor set aside, by writer or reader."""
    with HistoryWriter.open(path, clock=clock) as writer:
        writer.add(plain("cuda:0", 5))
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version={VERSION + 1}")
    later.close()
    before = path.read_bytes()
    for opening in (HistoryWriter.open, HistoryReader):
        with pytest.raises(StoreTooNew, match=f"version {VERSION + 1}"):
            opening(path)
    assert path.read_bytes() == before
    assert list(path.parent.glob("*damaged*")) == []


def test_the_database_of_another_program_is_left_alone(path):
    """Rule: EXO_GPU_HISTORY that names a stranger's database by mistake spoils nothing."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        HistoryWriter.open(path)
    with pytest.raises(StoreError, match="another program"):
        HistoryReader(path)
    assert path.read_bytes() == before
