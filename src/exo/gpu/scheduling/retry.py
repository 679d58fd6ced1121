"""Whether an item whose process died is tried again."""

from __future__ import annotations


def try_again(deaths: int, max_attempts: int) -> bool:
    """Judge an item that was in a dying process for the ``deaths``-th time (1 for the first).

    The process may have died of another item of the same chunk; from then on each goes alone, so
    that a poisonous item takes down only itself.
    """
    return deaths < max_attempts
