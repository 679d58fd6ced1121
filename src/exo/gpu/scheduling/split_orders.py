"""Many unlike devices: good orders by a few rules, then exchanges that improve them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from exo.gpu.scheduling.split_search import Found, Problem, best_along

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SAME = 1e-12
_TRIES = 300
"""Orders that are looked at; each takes a millisecond or two."""


def best_by_exchange(problem: Problem, most_devices: int) -> Found | None:
    """The best split over at most so many devices that is found; None where none was."""
    best: Found | None = None
    kept: list[int] = []
    for order in _starts(problem, most_devices):
        found = best_along(problem, order)
        if _better(found, best) or not kept:
            best, kept = found, order
    left = _TRIES
    improved = True
    while improved and left > 0:
        improved = False
        for order in islice(_exchanges(problem, kept), left):
            left -= 1
            found = best_along(problem, order)
            if _better(found, best):
                best, kept, improved = found, order, True
                break
    return best


def _better(found: Found | None, best: Found | None) -> bool:
    if found is None or best is None:
        return found is not None
    return found.seconds < best.seconds * (1 - _SAME)


def _starts(problem: Problem, most_devices: int) -> Iterator[list[int]]:
    """Orders by rules: the fastest first and last, the largest, those of one machine together."""
    devices = problem.costs.devices
    numbers = range(len(devices))
    fastest = sorted(numbers, key=lambda one: -devices[one].bandwidth_gbps)
    largest = sorted(numbers, key=lambda one: -devices[one].usable_bytes)
    for chosen in (fastest[:most_devices], largest[:most_devices]):
        hosts = [one for one in chosen if devices[one].host]
        rest = [one for one in chosen if not devices[one].host]
        yield hosts + rest
        yield hosts + rest[::-1]
        yield hosts + sorted(rest, key=lambda one: devices[one].node)


def _exchanges(problem: Problem, order: list[int]) -> Iterator[list[int]]:
    """Two devices in each other's place, one elsewhere, one for another that is not used."""
    unused = [one for one in range(len(problem.costs.devices)) if one not in order]
    for step in range(1, len(order)):
        for place in range(len(order) - step):
            changed = order.copy()
            changed[place], changed[place + step] = changed[place + step], changed[place]
            yield _hosts_first(problem, changed)
            moved = order.copy()
            moved.insert(place, moved.pop(place + step))
            yield _hosts_first(problem, moved)
    for place in range(len(order)):
        for other in unused:
            changed = order.copy()
            changed[place] = other
            yield _hosts_first(problem, changed)


def _hosts_first(problem: Problem, order: Sequence[int]) -> list[int]:
    return sorted(order, key=lambda one: not problem.costs.devices[one].host)
