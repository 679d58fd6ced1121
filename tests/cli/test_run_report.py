"""What a command took, in one line."""

from __future__ import annotations

import pytest

from exo.gpu.cli.run_report import report_line, span_words
from exo.gpu.vocabulary.command_end import CommandEnd
from exo.gpu.vocabulary.errors import InvalidValue

GIB = 2**30


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (60, "1 m"),
        (723.4, "12 m 3 s"),
        (7200, "2 h"),
        (7502, "2 h 5 m"),
        (90061, "1 d 1 h"),
    ],
)
def test_a_span_has_two_units_at_most(seconds, words):
    """Rule: people compare the first two units; the rest is noise."""
    assert span_words(seconds) == words


def test_the_line_says_what_is_known_and_no_more():
    """Rule: a figure that was not seen is said to be so, never guessed."""
    end = CommandEnd(
        returncode=0,
        seconds=723.0,
        device_ids=("cuda:0",),
        declared_bytes=8 * GIB,
        peak_device_bytes={"cuda:0": round(7.9 * GIB)},
    )
    assert report_line(end) == "cuda:0 for 12 m 3 s, peak 7.9 GiB of 8.0 GiB declared"
    bare = CommandEnd(returncode=0, seconds=1.0, device_ids=("cuda:0",))
    assert report_line(bare) == "cuda:0 for 1.0 s, peak not seen"
    pair = CommandEnd(
        returncode=-15,
        seconds=61.0,
        timed_out=True,
        device_ids=("cuda:0", "cuda:1"),
        peak_device_bytes={"cuda:0": GIB, "cuda:1": 2 * GIB},
        peak_host_bytes=3 * GIB,
        attempts=2,
    )
    assert report_line(pair) == (
        "cuda:0, cuda:1 for 1 m 1 s, ended by its time limit, peak 1.0 GiB and 2.0 GiB, "
        "host memory 3.0 GiB, at try 2"
    )


def test_an_impossible_end_is_refused():
    """Rule: no negative time, no end without a try."""
    with pytest.raises(InvalidValue, match="seconds"):
        CommandEnd(returncode=0, seconds=-1.0)
    with pytest.raises(InvalidValue, match="attempts"):
        CommandEnd(returncode=0, seconds=1.0, attempts=0)
