"""Whether memory came back: seen, or not to be told, and never guessed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from exo.gpu.scheduling.settling import NEAR_BYTES, is_settled
from tests.scheduling.test_job_queue import GIB, card, lease

ENDED = replace(lease(0, 8, name="ended"), ended_seconds=5.0, used_before_bytes=2 * GIB)


def test_it_is_back_when_the_use_is_near_what_it_was():
    assert is_settled(ENDED, card(0, [ENDED], used=2 * GIB + NEAR_BYTES), None)
    assert not is_settled(ENDED, card(0, [ENDED], used=2 * GIB + NEAR_BYTES + 1), None)


def test_what_others_declared_explains_use():
    other = lease(0, 4, name="other")
    assert is_settled(ENDED, card(0, [ENDED, other], used=6 * GIB), None)
    assert not is_settled(ENDED, card(0, [ENDED, other], used=7 * GIB), None)


@pytest.mark.parametrize("undeclared", [True, False])
def test_where_nothing_can_be_told_nobody_is_kept_waiting(undeclared):
    """Rule: use unknown, now or before, or others that declared nothing: no verification."""
    state = card(0, [ENDED, lease(0, name="other")] if undeclared else [ENDED], used=20 * GIB)
    if not undeclared:
        assert is_settled(replace(ENDED, used_before_bytes=None), state, None)
        state = replace(state, sample=None, sample_age_seconds=None)
    assert is_settled(ENDED, state, None)


def test_the_drivers_list_decides_where_it_knew_the_processes():
    """Rule: somebody else's growing use does not matter when the lease's processes are gone."""
    known = replace(ENDED, seen_pids=(7, 8))
    full = card(0, [known], used=20 * GIB)
    assert is_settled(known, full, frozenset({1, 2}))
    assert not is_settled(known, full, frozenset({8}))
    assert not is_settled(known, full, None)
    assert not is_settled(ENDED, full, frozenset())
