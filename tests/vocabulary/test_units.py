"""Sizes and durations: one function turns text into a number, and refuses all else by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.units import (
    check_number,
    check_text,
    check_whole,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("8G", 8 * 2**30),
        ("500MiB", 500 * 2**20),
        ("1.5gib", 3 * 2**29),
        (".5k", 512),
        (" 12 KB ", 12_000),
        ("4TiB", 2**42),
        ("1PB", 10**15),
        ("7", 7),
        ("7b", 7),
        ("0", 0),
        (4096, 4096),
        (0, 0),
    ],
)
def test_a_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["banana", "", "8 Gib b", "-1", -1, "1e9", "nan", "inf", "8GiBit", "GiB", "9" * 40, 2**63, 1.5,
     True, None, "8٣", "0x10"],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_field_and_value(text):
    with pytest.raises(InvalidValue, match="memory") as caught:
        parse_size(text, "memory")
    assert caught.value.value == text
    assert "8GiB" in str(caught.value)


@given(st.integers(0, 2**62))
def test_plain_bytes_are_exact(size):
    assert parse_size(size) == parse_size(str(size)) == size


@given(
    st.integers(0, 2**20), st.sampled_from(["KiB", "MiB", "GiB", "KB", "MB", "GB", "K", "m", "g"])
)
def test_case_and_spaces_do_not_matter(number, unit):
    assert (
        parse_size(f"{number}{unit}")
        == parse_size(f" {number} {unit.upper()}")
        == parse_size(f"{number}{unit.lower()}")
    )


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text):
    try:
        size = parse_size(text)
    except InvalidValue:
        return
    assert 0 <= size <= 2**62


@given(st.integers(0, 2**60))
def test_what_people_read_is_close_to_the_truth(size):
    """One decimal: half of a tenth of the unit off, at most."""
    text = format_size(size)
    unit = 1024 ** "BKMGTP".index(text.split()[1][0])
    assert abs(parse_size(text) - size) <= 0.05 * unit + 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (25_125_558_681, "23.4 GiB"),
        (99 * 2**40, "99.0 TiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_a_size_for_people(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("90s", 90), ("1.5h", 5400), ("250ms", 0.25), ("2d", 172_800), ("5", 5),
     ("1min", 60), (3, 3), (0.5, 0.5)],
)  # fmt: skip
def test_a_duration(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "-1s", -1, math.nan, math.inf, "1y", True, "9" * 400])
def test_what_is_no_duration_is_refused_by_field(text):
    with pytest.raises(InvalidValue, match="wait"):
        parse_duration(text, "wait")


class TestChecks:
    @pytest.mark.parametrize("value", [0, 1.5, 100])
    def test_numbers_within_bounds_pass(self, value):
        check_number("x", value, low=0, high=100)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 101, "1", True, None, 1j])
    def test_other_numbers_are_refused(self, value):
        with pytest.raises(InvalidValue, match=r"x: .* is not a finite number within 0\.\.100"):
            check_number("x", value, low=0, high=100)

    def test_none_passes_where_unknown_is_allowed(self):
        check_number("x", None, optional=True)
        check_whole("x", None, optional=True)

    @pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
    def test_whole_numbers(self, value):
        check_whole("x", 0)
        with pytest.raises(InvalidValue, match="x"):
            check_whole("x", value)

    @pytest.mark.parametrize("value", ["", "  ", None, 3])
    def test_text(self, value):
        check_text("x", "a")
        check_text("x", "", empty=True)
        with pytest.raises(InvalidValue, match="x"):
            check_text("x", value)
