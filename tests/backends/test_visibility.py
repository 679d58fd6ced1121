"""What an inherited list leaves: never more than the drivers themselves would show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.backends.visibility import visible

NAMES = ["GPU-aaaa1111", "GPU-aaab2222", "GPU-bbbb3333"]
TOKENS = st.sampled_from(
    ["0", "1", "2", "3", "-1", "", " 1 ", "GPU-a", "GPU-b", "GPU-AAAA", *NAMES]
)


def places(value: str | None, *, order_known: bool = True) -> tuple[int, ...]:
    return visible("LIST", value, NAMES, order_known=order_known).places


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("2,0", (0, 2)),
        ("0,0", (0,)),
        ("0,2,-1,1", (0, 2)),
        ("1,9,0", (1,)),
        ("GPU-bbbb", (2,)),
        ("GPU-aaa", ()),
        ("gpu-AAAB", (1,)),
        ("GPU-", ()),
        ("²", ()),
    ],
)
def test_the_drivers_own_reading(value: str | None, expected: tuple[int, ...]) -> None:
    """Rule: the list ends silently at its first invalid entry; a prefix must be unique."""
    assert places(value) == expected


def test_indices_in_unknown_order_are_taken_only_when_they_name_all() -> None:
    """Rule: a set of all indices needs no order; any other is refused with the reason."""
    assert places("2,1,0", order_known=False) == (0, 1, 2)
    left, note = visible("LIST", "1", NAMES, order_known=False)
    assert left == ()
    assert "name them by UUID" in note


@given(tokens=st.lists(TOKENS, max_size=6), order_known=st.booleans())
def test_a_list_never_widens(tokens: list[str], order_known: bool) -> None:
    """Rule: a longer list of valid entries shows no less, and unknown order never shows more."""
    value = ",".join(tokens)
    left = places(value, order_known=order_known)
    assert set(left) <= set(range(len(NAMES)))
    assert set(left) <= set(places(value))
    assert set(places(",".join(tokens[:-1]))) <= set(places(value)) or not tokens
