"""Pulses: a device's newest word of itself counts, ordered by the sender's time."""

from __future__ import annotations

import pytest

from exo.gpu.telemetry.health.pulse import PulseBoard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    return PulseBoard(clock=clock)


def test_who_never_spoke_has_no_trouble(board):
    assert board.trouble("cuda:0") == ""


def test_the_newest_word_counts(board):
    board.take("cuda:0", 1.0, "hot")
    assert board.trouble("cuda:0") == "hot"
    board.take("cuda:0", 2.0)
    assert board.trouble("cuda:0") == ""


def test_a_late_word_changes_nothing(board):
    board.take("cuda:0", 2.0, "hot")
    board.take("cuda:0", 1.0)
    assert board.trouble("cuda:0") == "hot"


def test_after_silence_an_older_time_means_a_clock_set_back(board, clock):
    board.take("cuda:0", 1e12, "hot")
    clock.now = 31
    board.take("cuda:0", 1.0)
    assert board.trouble("cuda:0") == ""


def test_forgetting_is_harmless_twice(board):
    board.take("cuda:0", 1.0, "hot")
    board.forget("cuda:0")
    board.forget("cuda:0")
    assert board.trouble("cuda:0") == ""
