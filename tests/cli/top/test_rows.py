"""Rows, columns and their order, as values."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.cli.top.columns import COLUMNS, Row, condition, natural, short_name
from exo.gpu.cli.top.rows import (
    GAP,
    Sorting,
    columns_for,
    header,
    line,
    next_sorting,
    ordered,
    rows_of,
)
from exo.gpu.cli.users import cells
from exo.gpu.vocabulary.health import Cordon, Health
from tests.cli.top.frames import GIB, MACHINE, NOW, UNKNOWN, many, state

ROWS = [
    row
    for frame in (MACHINE, UNKNOWN, many(12))
    for row in rows_of(frame.snapshot.devices, frame.users, frame.untold)
]
CORDON = Cordon(hardware_id="x", device_id="cuda:0", why="a test", by="alice", since=NOW)


@given(st.integers(1, 300), st.lists(st.sampled_from(ROWS), max_size=6))
def test_a_line_is_as_wide_as_its_header_and_fits(width, rows):
    """Rule: columns are straight, and no wider than the window as soon as it has 40 columns."""
    columns = columns_for(width, rows)
    wide = sum(size for _, size in columns) + GAP * (len(columns) - 1)
    assert cells(header(columns, Sorting("UTIL"))) == wide
    for row in rows:
        assert sum(map(cells, line(row, columns))) + GAP * (len(columns) - 1) == wide
    assert width < 40 or wide <= width


def test_wider_windows_show_more():
    """Rule: a column that is there in a window is there in every wider one."""
    before: set[str] = set()
    for width in range(40, 240, 10):
        shown = {column.title for column, _ in columns_for(width, ROWS[:5])}
        assert before <= shown
        before = shown
    assert {"USERS", "LIMIT", "CLOCK", "RUNTIME", "DRIVER"} <= before


def test_80_columns_have_what_is_asked_most():
    """Rule: identity, name, state, load, memory, heat, power and users fit a plain terminal."""
    titles = [column.title for column, _ in columns_for(79, ROWS[:5])]
    assert titles == ["ID", "NAME", "STATE", "UTIL", "MEMORY", "TEMP", "POWER", "USERS"]


@given(st.permutations(ROWS[:8]), st.sampled_from([None, *COLUMNS]), st.booleans())
def test_sorting_loses_nobody_and_leaves_the_unknown_last(rows, column, reverse):
    """Rule: the same rows come out, known ones first, equals in the order they had."""
    sorting = Sorting(column and column.title, reverse)
    result = ordered(rows, sorting)
    assert sorted(map(id, result)) == sorted(map(id, rows))
    if column is None:
        return
    known = [column.key(row) is not None for row in result]
    assert known == sorted(known, reverse=True)
    keys = [column.key(row) for row in result if column.key(row) is not None]
    assert keys == sorted(keys, reverse=column.falling != reverse)
    places = {id(row): place for place, row in enumerate(rows)}
    for key in {str(one) for one in keys}:
        same = [places[id(row)] for row in result if str(column.key(row)) == key]
        assert same == sorted(same)


def test_ids_are_sorted_as_people_count():
    """Rule: cuda:2 stands before cuda:10, and rig2 before rig10."""
    names = ["cpu:0", "cuda:2", "cuda:10", "rig2/cuda:0", "rig10/cuda:0"]
    mixed = names[:]
    random.Random(1).shuffle(mixed)
    assert sorted(mixed, key=natural) == names


def test_the_next_column_after_the_last_is_none():
    """Rule: going round once leads back, either way; a column that is gone counts as none."""
    titles = ["ID", "UTIL"]
    assert next_sorting(Sorting(), titles) == Sorting("ID")
    assert next_sorting(Sorting("UTIL", True), titles) == Sorting(None)
    assert next_sorting(Sorting(), titles, step=-1) == Sorting("UTIL")
    assert next_sorting(Sorting("FAN"), titles) == Sorting("ID")


@pytest.mark.parametrize(
    ("health", "cordon", "word"),
    [
        (Health.OK, None, "ok"),
        (Health.OK, CORDON, "cordoned"),
        (Health.SLEEPING, CORDON, "cordoned"),
        (Health.FAILED, CORDON, "failed"),
        (Health.OK, Cordon(**CORDON.to_dict() | {"draining": True}), "draining"),
    ],
)
def test_the_worse_of_health_and_cordon_is_shown(health, cordon, word):
    """Rule: a device that is broken is called broken, also where it is kept out."""
    assert condition(state(health=health, cordon=cordon)) == word


def test_a_name_does_not_begin_with_the_vendor():
    """Rule: the column is for what tells devices apart."""
    assert short_name(Row(state(name="NVIDIA H100 PCIe"))) == "H100 PCIe"
    assert short_name(Row(state(name="NVIDIA"))) == "NVIDIA"


def test_who_is_on_a_device_that_does_not_tell():
    """Rule: no list is no zero, and leases on it are a lower bound."""
    (column,) = [one for one in COLUMNS if one.title == "USERS"]
    assert [column.text(row) for row in ROWS[:5]] == ["3", "0", "0", "-", "1+"]
    assert [column.key(row) for row in ROWS[:5]] == [3, 0, 0, None, 1]


def test_a_device_without_memory_is_no_division():
    """Rule: a total of nothing gives no percentage."""
    (column,) = [one for one in COLUMNS if one.title == "FULL"]
    empty = Row(state(readings={"memory_used_bytes": 0, "memory_total_bytes": 0}))
    half = Row(state(readings={"memory_used_bytes": GIB, "memory_total_bytes": 2 * GIB}))
    assert (column.text(empty), column.text(half)) == ("-", "50%")
