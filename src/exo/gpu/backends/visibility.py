"""What an inherited list of visible devices leaves: the universe that is never widened."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# "GPU-" and at least one digit of the identity: less names no device.
_SHORTEST_PREFIX = 5


class Visible(NamedTuple):
    """Places of the visible devices in the order asked about, and what was left out and why."""

    places: tuple[int, ...]
    note: str


def visible(
    variable: str, value: str | None, identities: Sequence[str], *, order_known: bool
) -> Visible:
    """Which of ``identities`` the ``value`` of a variable such as CUDA_VISIBLE_DEVICES leaves.

    As the drivers do, the list ends silently at its first invalid entry, an identity may be cut
    to a unique prefix, and an empty list hides everything; None means that nothing is
    restricted. Indices count in the driver's order; ``order_known`` says that ``identities`` are
    in that order too. Where they may not be, an index list that names all devices is taken and
    any other is refused, because a wrong guess would widen the restriction.
    """
    everything = tuple(range(len(identities)))
    if value is None:
        return Visible(everything, "")
    places: list[int] = []
    by_index: list[int] = []
    for token in (part.strip() for part in value.split(",")):
        place = _place(token, identities)
        if place is None:
            break
        if token.isdigit():
            by_index.append(place)
        places.append(place)
    hidden = f"{variable}={value!r} hides"
    if by_index and not order_known and set(places) != set(everything):
        named = tuple(sorted(set(places) - set(by_index)))
        return Visible(
            named,
            f"{variable}={value!r} lists indices in the driver's own order, which cannot be "
            f"matched with these {len(everything)} unlike devices; name them by UUID",
        )
    left = tuple(sorted(set(places)))
    count = len(everything) - len(left)
    return Visible(left, f"{hidden} {count} of {len(everything)}" if count else "")


def _place(token: str, identities: Sequence[str]) -> int | None:
    if token.isascii() and token.isdigit():
        return int(token) if int(token) < len(identities) else None
    if len(token) < _SHORTEST_PREFIX:
        return None
    wanted = token.lower()
    matches = [place for place, name in enumerate(identities) if name.lower().startswith(wanted)]
    return matches[0] if len(matches) == 1 else None
