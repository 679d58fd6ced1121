"""How devices of a machine, and machines, are joined, and how fast that was seen to be."""

from __future__ import annotations

from enum import StrEnum

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text


class LinkKind(StrEnum):
    """The nearest way between two devices, best first; the words of ``nvidia-smi topo -m``."""

    NVLINK = "nvlink"
    BOARD = "board"
    """Two devices of one card."""
    SWITCH = "switch"
    """Through PCIe switches only."""
    HOST_BRIDGE = "host_bridge"
    """Through the PCIe host bridge of one processor."""
    NUMA_NODE = "numa_node"
    """Within one NUMA node, across host bridges."""
    SYSTEM = "system"
    """Across processors."""


class Interconnect(StrEnum):
    """How each two devices of a request for several must be joined at least."""

    NVLINK = "nvlink"
    SAME_SWITCH = "same_switch"
    """Through PCIe switches, on one board, or better."""
    ANY = "any"


class Link(WireValue, frozen=True, kw_only=True):
    """What is known of the way from one device to another; unknown is None.

    ``peer_access`` says whether ``source`` can read and write the memory of ``target`` directly.
    ``bandwidth_gbps`` is GB/s (10**9 bytes) as measured by a probe.
    """

    source: str
    target: str
    kind: LinkKind | None = None
    peer_access: bool | None = None
    bandwidth_gbps: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("source", self.source)
        check_text("target", self.target)
        if self.source == self.target:
            raise InvalidValue("target", self.target, "another device than the source")
        check_number("bandwidth_gbps", self.bandwidth_gbps, low=0, optional=True)


class Route(WireValue, frozen=True, kw_only=True):
    """How fast two nodes reach each other, as one of them measured it.

    Raises:
        InvalidValue: for an empty name or a number that cannot be.

    """

    source: str
    target: str
    latency_seconds: float
    """There and back with a few bytes: the median of several."""
    bandwidth_bytes_per_second: float | None = None
    """None where too little was sent to tell."""
    measured_at: float = 0.0
    """Unix seconds."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("source", self.source)
        check_text("target", self.target)
        check_number("latency_seconds", self.latency_seconds, low=0)
        check_number(
            "bandwidth_bytes_per_second", self.bandwidth_bytes_per_second, low=0, optional=True
        )
