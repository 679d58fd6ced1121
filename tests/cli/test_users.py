"""The table of users: every line fits, nothing in it commands the terminal, and '-' has a reason."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.cli.users import cells, fit, held, printable, reason_lines, started, users_table
from exo.gpu.vocabulary.process import DeviceUser

GIB = 2**30
NOW = 1_772_366_700.0  # 2026-03-01 12:05 UTC


@pytest.fixture(autouse=True)
def in_utc(utc):
    """The reader's zone is UTC."""


def user(**fields):
    facts = {
        "device_id": "cuda:0",
        "pid": 4711,
        "user": "alice",
        "command": "python train.py --epochs 3",
        "since": NOW - 65,
        "memory_bytes": 5 * GIB,
    }
    return DeviceUser(**facts | fields)


def test_processes_and_leases_stand_side_by_side():
    """Rule: one line each, what is unknown as '-', what a lease reserves beside what is used."""
    users = [
        user(lease_id="a", declared_bytes=8 * GIB),
        user(pid=12, user="bob", since=NOW - 3 * 86400, memory_bytes=None, foreign=True),
        user(pid=100, listed=False, memory_bytes=None, lease_id="b", holder="a run", command="x"),
        DeviceUser(device_id="cuda:1", foreign=True),
    ]
    assert users_table(users, now=NOW) == [
        "DEVICE   PID  USER   SINCE          USED  LEASE    COMMAND",
        "cuda:0  4711  alice  12:03       5.0 GiB  8.0 GiB  python train.py --epochs 3",
        "cuda:0    12  bob    2026-02-26        -  foreign  python train.py --epochs 3",
        "cuda:0   100  alice  12:03             -  slot     a run",
        "cuda:1     -  -      -                 -  foreign  -",
    ]


def test_each_reason_is_told_once():
    """Rule: whom a reason concerns stands in front of it, and many are counted."""
    hidden = [user(pid=pid, reason="another user's") for pid in range(1, 7)]
    alone = user(pid=9, device_id="cpu:0", listed=False, reason="leases only")
    assert reason_lines([*hidden, alone], {"cpu:0": "the host", "rocm:0": "the host"}) == [
        "cpu:0, rocm:0: the host",
        "cuda:0 1, cuda:0 2, cuda:0 3, cuda:0 4 and 2 more: another user's",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"foreign": True}, "foreign"),
        ({"lease_id": "a"}, "slot"),
        ({"lease_id": "a", "share": 0.25}, "25%"),
        ({"lease_id": "a", "declared_bytes": 0}, "0 B"),
        ({"lease_id": "a", "declared_bytes": GIB, "exclusive": True}, "whole"),
    ],
)
def test_what_is_held(fields, words):
    """Rule: a lease on memory, a slot, a part, the whole device and none are told apart."""
    assert held(user(**fields)) == words


def test_a_start_of_today_is_a_time_and_an_older_one_a_date():
    """Rule: what people need to know of a start fits in ten columns; unknown is '-'."""
    assert started(None, NOW) == "-"
    assert started(NOW, NOW) == "12:05"
    assert started(NOW - 86400, NOW) == "2026-02-28"


def test_a_command_cannot_command_the_terminal():
    """Rule: an escape sequence in somebody's command line is shown, and not obeyed."""
    line = users_table([user(command="evil \x1b[2J\x07\nname\u202e")], now=NOW)[1]
    assert line.endswith("evil ?[2J? name?")


def test_wide_characters_take_two_columns():
    """Rule: columns stay straight under names of any script."""
    first, second = users_table([user(user="山田"), user(user="bob")], now=NOW, devices=False)[1:]
    assert cells(first[: first.index("12:03")]) == cells(second[: second.index("12:03")])
    assert fit("山田太郎", 5) == "山田…"
    assert fit("山田太郎", 5, end=True) == "…太郎"
    assert cells("e\u0301") == 1


NAMES = st.text(max_size=60)
USERS = st.builds(
    DeviceUser,
    device_id=st.text(min_size=1, max_size=40).filter(str.strip),
    pid=st.none() | st.integers(0, 2**22),
    user=st.none() | NAMES,
    command=st.none() | NAMES,
    since=st.none() | st.floats(0, NOW),
    memory_bytes=st.none() | st.integers(0, 2**50),
    listed=st.booleans(),
    foreign=st.booleans(),
    holder=NAMES,
    declared_bytes=st.none() | st.integers(0, 2**50),
    exclusive=st.booleans(),
)


@given(st.lists(USERS, max_size=5), st.integers(80, 200))
def test_every_line_fits_and_can_be_shown(users, width):
    """Rule: whatever others are called, the table has its width and only what can be shown."""
    lines = users_table(users, now=NOW, width=width)
    assert len(lines) == len(users) + 1
    for line in lines:
        assert sum(_width(character) for character in line) <= width
        assert line.isprintable()


@given(NAMES, st.integers(1, 30))
def test_what_is_cut_says_so(text, width):
    """Rule: a text is whole, or ends (begins) with an ellipsis, and never too wide."""
    whole = printable(text)
    for end in (False, True):
        cut = fit(text, width, end=end)
        assert cells(cut) <= width
        assert cut == whole or ("…" in cut and cells(whole) > width)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
