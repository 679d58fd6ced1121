"""Machines that each hold some layers and hand tokens on, and which holds which."""

from __future__ import annotations

from exo.gpu.vocabulary.errors import DuplicateDevice, InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.model import MOST_LAYERS
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

SOURCE, SINK = "source", "sink"
"""Where tokens come from and go to: names that no node has."""


class NetworkNode(WireValue, frozen=True, kw_only=True):
    """A machine: tokens a second that it works off when it holds one layer, two, and so on.

    It holds no more layers than ``tokens_per_second`` has places.
    """

    name: str
    tokens_per_second: tuple[float, ...]
    kind: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("name", self.name)
        if self.name in {SOURCE, SINK}:
            raise InvalidValue("name", self.name, "another name than those of the two ends")
        if not self.tokens_per_second:
            raise InvalidValue("tokens_per_second", self.name, "a table of at least one layer")
        for rate in self.tokens_per_second:
            check_number("tokens_per_second", rate, low=0)


class NetworkLink(WireValue, frozen=True, kw_only=True):
    """The way from one node to another, or from ``source`` or to ``sink``."""

    source: str
    target: str
    bytes_per_second: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("source", self.source)
        check_text("target", self.target)
        check_number("bytes_per_second", self.bytes_per_second, low=0)
        check_number("latency_seconds", self.latency_seconds, low=0)


class SplitNetwork(WireValue, frozen=True, kw_only=True):
    """Nodes, links, and what a token weighs between two layers and at the ends."""

    nodes: tuple[NetworkNode, ...]
    links: tuple[NetworkLink, ...]
    layer_count: int
    activation_bytes_per_token: int
    token_bytes: int = 2

    def __post_init__(self) -> None:
        """Check every field."""
        check_whole("layer_count", self.layer_count, low=1)
        check_whole("activation_bytes_per_token", self.activation_bytes_per_token, low=1)
        check_whole("token_bytes", self.token_bytes, low=1)
        if self.layer_count > MOST_LAYERS:
            raise InvalidValue("layer_count", self.layer_count, f"at most {MOST_LAYERS}")
        if not self.nodes:
            raise InvalidValue("nodes", [], "at least one node")
        names = [node.name for node in self.nodes]
        for name in names:
            if names.count(name) > 1:
                raise DuplicateDevice("nodes", name, "named once only")
        known = {*names, SOURCE, SINK}
        for link in self.links:
            for name in (link.source, link.target):
                if name not in known:
                    raise InvalidValue("links", name, "a node of this network")


class NetworkPlan(WireValue, frozen=True, kw_only=True):
    """Which node holds which layers, ``[first, end)``, and how much flows through.

    ``tokens_per_second`` is the maximum flow, and nothing flows beyond ``bound``. A higher flow may
    lead through more nodes: ``token_seconds`` is what a token takes on its way on average, with
    every node at its full rate, and ``nodes_on_way`` how many it passes.
    """

    placement: dict[str, tuple[int, int]]
    tokens_per_second: float
    bound: float
    token_seconds: float | None
    nodes_on_way: float | None
    method: str

    @property
    def gap(self) -> float | None:
        """How far from the optimum this is at most, as a ratio; None where nothing flows."""
        return self.bound / self.tokens_per_second - 1.0 if self.tokens_per_second else None
