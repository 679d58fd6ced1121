"""From a vendor's words for a held-back clock to those that all vendors share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exo.gpu.vocabulary.health import ThrottleKind


def throttle_kinds(
    words: Iterable[str] | None, meanings: Mapping[str, ThrottleKind | None]
) -> tuple[ThrottleKind, ...] | None:
    """The kinds among a vendor's words, each once; None where nobody knows whether there is one.

    ``meanings`` has None for a word that is no trouble. A word that it does not have may mean
    anything: then the known kinds are told, and None where there is none among them.
    """
    if words is None:
        return None
    given = tuple(words)
    kinds = tuple(dict.fromkeys(kind for word in given if (kind := meanings.get(word)) is not None))
    return kinds if kinds or all(word in meanings for word in given) else None
