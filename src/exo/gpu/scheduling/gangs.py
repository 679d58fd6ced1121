"""Which devices work together best: the k that maximise the slowest link between any two."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.links import Interconnect, Link, LinkKind, Route
from exo.gpu.vocabulary.request import Request

# All subsets of 16 devices, the most that one machine usually has, are searched in milliseconds;
# beyond, a gang is grown from this many of the best devices.
EXACT_DEVICES = 16
SEEDS = 64

# How good a link is: the higher the better. Two machines are joined by a network only.
_NETWORK, _UNKNOWN = 0, 1
_LEVELS = {kind: len(LinkKind) - place + 1 for place, kind in enumerate(LinkKind)}
_LEAST = {
    Interconnect.ANY: _NETWORK,
    Interconnect.SAME_SWITCH: _LEVELS[LinkKind.SWITCH],
    Interconnect.NVLINK: _LEVELS[LinkKind.NVLINK],
}
_CLASSES = (DeviceClass.HARDWARE, DeviceClass.SOFTWARE, DeviceClass.HOST)
_NAMES = {level: kind.value for kind, level in _LEVELS.items()} | {
    _NETWORK: "network",
    _UNKNOWN: "an unknown way",
}


class Gang(msgspec.Struct, frozen=True):
    """Places in the sequence that was searched, and the worst of the links among them in words."""

    places: tuple[int, ...]
    slowest_link: str = ""


class Links:
    """How good the way between two devices is, from what is known of each direction."""

    def __init__(self, links: Iterable[Link] = (), routes: Iterable[Route] = ()) -> None:
        self._levels: dict[frozenset[str], int] = {}
        self._rates: dict[frozenset[str], float] = {}
        for route in routes:
            if route.bandwidth_bytes_per_second is not None:
                nodes = frozenset((route.source, route.target))
                rate = route.bandwidth_bytes_per_second
                self._rates[nodes] = min(rate, self._rates.get(nodes, rate))
        for link in links:
            if link.kind is not None:
                pair = frozenset((link.source, link.target))
                level = _LEVELS[link.kind]
                self._levels[pair] = min(level, self._levels.get(pair, level))

    def level(self, one: GPUDevice, other: GPUDevice) -> int:
        """0 for a network, 1 for an unknown way within a machine, more for a better one."""
        if one.node != other.node:
            return _NETWORK
        return self._levels.get(frozenset((one.device_id, other.device_id)), _UNKNOWN)

    def rate(self, one: str, other: str) -> float:
        """Bytes a second between two machines, of the slower direction; 0 where unknown."""
        return self._rates.get(frozenset((one, other)), 0.0)


def find_gang(
    devices: Sequence[GPUDevice], tiers: Sequence[int], request: Request, links: Links
) -> Gang | None:
    """The ``request.count`` devices that work together best, or None where no such gang exists.

    ``devices`` stand best first. A device of a higher tier takes part only where the lower ones
    form no gang; then the slowest link decides, then the order given. One machine comes first.
    """
    if len(devices) < request.count:
        return None
    if request.count == 1:
        return Gang((0,))
    for highest in sorted(set(tiers)):
        pool = [place for place, tier in enumerate(tiers) if tier <= highest]
        places = _best_places(pool, devices, request, links)
        if places is not None:
            return Gang(places, _slowest([devices[place] for place in places], links))
    return None


def _best_places(
    pool: Sequence[int], devices: Sequence[GPUDevice], request: Request, links: Links
) -> tuple[int, ...] | None:
    nodes: dict[str, list[int]] = {}
    for place in pool:
        nodes.setdefault(devices[place].node, []).append(place)
    least = _LEAST[request.interconnect]
    found: list[tuple[int, tuple[int, ...]]] = []
    for places in nodes.values():
        if len(places) >= request.count:
            found += _best_of_node(places, devices, request.count, links, least)
    if found:
        # Where all classes may take part, a second GPU is better than the processor beside one.
        return min(found, key=lambda one: (_lowest(one[1], devices), -one[0], one[1]))[1]
    if request.same_node or least > _NETWORK or len(pool) < request.count:
        return None
    return _across(nodes, request.count, links)


def _lowest(places: Sequence[int], devices: Sequence[GPUDevice]) -> int:
    return max(_CLASSES.index(devices[place].device_class) for place in places)


def _across(nodes: Mapping[str, list[int]], count: int, links: Links) -> tuple[int, ...]:
    """On as few machines as will do; of those that do, where the slowest way is the fastest.

    Grown from each of the largest machines in turn, which is no search of all sets.
    """
    order = sorted(nodes, key=lambda node: (-len(nodes[node]), nodes[node][0]))
    found = (_group(seed, order, nodes, count, links) for seed in order[:SEEDS])
    group, _ = min(found, key=lambda one: (len(one[0]), -one[1]))
    places = itertools.chain.from_iterable(nodes[node] for node in group)
    return tuple(sorted(itertools.islice(places, count)))


def _group(
    seed: str, order: Sequence[str], nodes: Mapping[str, list[int]], count: int, links: Links
) -> tuple[list[str], float]:
    """Machines with devices enough, and the slowest way between any two of them."""
    group, slowest = [seed], float("inf")
    missing = count - len(nodes[seed])
    left = [node for node in order if node != seed]
    reach = {node: links.rate(seed, node) for node in left}
    while missing > 0:
        # Those before it in the order are at least as large: of the same use, the fastest.
        node = max(left, key=lambda one: (min(len(nodes[one]), missing), reach[one]))
        left.remove(node)
        group.append(node)
        slowest = min(slowest, reach.pop(node))
        missing -= len(nodes[node])
        reach = {one: min(rate, links.rate(node, one)) for one, rate in reach.items()}
    return group, slowest


def _best_of_node(
    places: Sequence[int], devices: Sequence[GPUDevice], count: int, links: Links, least: int
) -> list[tuple[int, tuple[int, ...]]]:
    """The best gang of one machine with its level, or nothing."""
    members = [devices[place] for place in places]
    levels = {
        (one, other): links.level(members[one], members[other])
        for one, other in itertools.combinations(range(len(members)), 2)
    }
    for level in sorted(set(levels.values()), reverse=True):
        if level < least:
            break
        joined = _joined(len(members), levels, level)
        search = _exact if len(members) <= EXACT_DEVICES else _grown
        gang = search(joined, count)
        if gang is not None:
            return [(level, tuple(places[one] for one in gang))]
    return []


def _joined(count: int, levels: Mapping[tuple[int, int], int], level: int) -> list[int]:
    """For each device a bit set of those it is joined to at least that well."""
    joined = [0] * count
    for (one, other), found in levels.items():
        if found >= level:
            joined[one] |= 1 << other
            joined[other] |= 1 << one
    return joined


def _exact(joined: Sequence[int], count: int) -> list[int] | None:
    """The first clique of that size in the order of its members, by search with pruning."""

    def extend(gang: list[int], candidates: int) -> list[int] | None:
        missing = count - len(gang)
        if missing == 0:
            return gang
        while candidates.bit_count() >= missing:
            lowest = (candidates & -candidates).bit_length() - 1
            candidates &= candidates - 1
            found = extend([*gang, lowest], candidates & joined[lowest])
            if found is not None:
                return found
        return None

    enough = sum(1 << one for one, bits in enumerate(joined) if bits.bit_count() >= count - 1)
    return extend([], enough)


def _grown(joined: Sequence[int], count: int) -> list[int] | None:
    """A clique grown from each of the first devices in turn, always by the next that fits."""
    for seed in range(min(SEEDS, len(joined))):
        gang, candidates = [seed], joined[seed]
        while candidates and len(gang) < count:
            lowest = (candidates & -candidates).bit_length() - 1
            gang.append(lowest)
            candidates &= joined[lowest]
        if len(gang) == count:
            return sorted(gang)
    return None


def _slowest(gang: Sequence[GPUDevice], links: Links) -> str:
    one, other = min(
        itertools.combinations(gang, 2),
        key=lambda pair: (links.level(*pair), links.rate(pair[0].node, pair[1].node)),
    )
    level = links.level(one, other)
    rate = links.rate(one.node, other.node) if level == _NETWORK else 0.0
    speed = f" ({rate / 1e6:.0f} MB/s)" if rate else ""
    return f"{_NAMES[level]}{speed} between {one.device_id} and {other.device_id}"
