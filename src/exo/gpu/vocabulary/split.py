"""A model split over devices: what each offers, what each gets, and how fast that is foretold."""

from __future__ import annotations

from enum import StrEnum

from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole


class SplitGoal(StrEnum):
    """What a split is to be good at."""

    LATENCY = "latency"
    """The least time for a token of one batch: one user, or few."""
    THROUGHPUT = "throughput"
    """The most tokens a second, with a batch in each device at once: many users."""


class SplitDevice(WireValue, frozen=True, kw_only=True):
    """What a device offers to a model: memory, and how fast it reads it.

    ``bandwidth_gbps`` is GB/s (10**9 bytes), ``compute_gflops`` 10**9 floating-point operations a
    second in the precision of the model; without it compute costs nothing and prefill is unknown.
    """

    device_id: str
    free_bytes: int
    bandwidth_gbps: float
    compute_gflops: float | None = None
    reserve_bytes: int = 0
    """Of what is free, what others are to have."""
    buffer_bytes: int = 0
    """Of what is free, what the engine takes beside weights and cache."""
    total_bytes: int | None = None
    """What would be free if nobody else were on it; None: no more than now."""
    name: str = ""
    node: str = ""
    runtime: str = ""
    hardware_id: str = ""
    host: bool = False
    """The machine's own processor and memory: it takes layers at the front only."""
    assumptions: tuple[str, ...] = ()
    """Which of these figures were not measured, and where they come from."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("device_id", self.device_id)
        for field in ("free_bytes", "reserve_bytes", "buffer_bytes"):
            check_whole(field, getattr(self, field))
        check_whole("total_bytes", self.total_bytes, optional=True)
        check_number("bandwidth_gbps", self.bandwidth_gbps, low=0)
        check_number("compute_gflops", self.compute_gflops, low=0, optional=True)
        if self.bandwidth_gbps == 0:
            raise InvalidValue("bandwidth_gbps", self.bandwidth_gbps, "above 0")
        if self.compute_gflops == 0:
            raise InvalidValue("compute_gflops", self.compute_gflops, "above 0, or None")

    @property
    def usable_bytes(self) -> int:
        """What weights and cache may take: free, less the reserve, less the buffers."""
        return max(0, self.free_bytes - self.reserve_bytes - self.buffer_bytes)


class SplitLink(WireValue, frozen=True, kw_only=True):
    """The way from one device to another: GB/s (10**9 bytes), and seconds until a message is there.

    ``source`` and ``target`` are device ids; ``*`` stands for any device, and two links of one
    pair are looked at in the order in which they are given.
    """

    source: str = "*"
    target: str = "*"
    bandwidth_gbps: float
    latency_seconds: float = 0.0
    within_node: bool | None = None
    """True: only between devices of one machine; False: only across machines."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("source", self.source)
        check_text("target", self.target)
        check_number("bandwidth_gbps", self.bandwidth_gbps, low=0)
        check_number("latency_seconds", self.latency_seconds, low=0)
        if self.bandwidth_gbps == 0:
            raise InvalidValue("bandwidth_gbps", self.bandwidth_gbps, "above 0")

    def joins(self, source: SplitDevice, target: SplitDevice) -> bool:
        """Whether it is the way between these two."""
        if self.within_node is not None and self.within_node != (source.node == target.node):
            return False
        return self.source in {"*", source.device_id} and self.target in {"*", target.device_id}


ASSUMED_LINKS = (
    SplitLink(bandwidth_gbps=12.0, latency_seconds=20e-6, within_node=True),
    SplitLink(bandwidth_gbps=0.125, latency_seconds=1e-3, within_node=False),
)
"""Where nothing was measured: a copy through the host on PCIe 3.0 x16, and gigabit Ethernet."""


class DeviceShare(WireValue, frozen=True, kw_only=True):
    """The layers of one device, ``first_layer`` up to but without ``end_layer``, and their cost."""

    device_id: str
    first_layer: int
    end_layer: int
    weight_bytes: int
    """With the embedding and the output where it has the first or the last layer."""
    cache_bytes: int
    usable_bytes: int
    decode_seconds: float
    """For one step of a batch."""
    prefill_seconds: float | None
    """For a chunk of a prompt; None where its compute is not known."""
    hop_seconds: float = 0.0
    """For handing on what it made; 0 for the last one."""
    host: bool = False

    @property
    def layer_count(self) -> int:
        """How many layers it has."""
        return self.end_layer - self.first_layer

    @property
    def needed_bytes(self) -> int:
        """Weights and cache; never above ``usable_bytes``."""
        return self.weight_bytes + self.cache_bytes


class LeftOut(WireValue, frozen=True, kw_only=True):
    """A device that gets nothing, and why."""

    device_id: str
    reason: str


class Shortage(WireValue, frozen=True, kw_only=True):
    """That a model does not fit, and what would."""

    missing_bytes: int
    """The least that has to go elsewhere."""
    largest_context_tokens: int | None = None
    """With a context of so many tokens it fits; None: with none does it."""
    layers_on_host: int | None = None
    """With so many layers in the machine's memory it fits; None: not known, or not so either."""
    host_bytes: int | None = None
    """What these take there."""
    fits_when_empty: bool = False
    """Whether it would fit if nobody else were on the devices."""
    fits_for_latency: bool = False
    """Asked for throughput: whether it fits with one batch under way, whose caches are fewer."""


class SplitPlan(WireValue, frozen=True, kw_only=True):
    """Which device gets which layers, and what follows from it; without shares, why not.

    ``optimal`` says that no split of this form is better; ``gap`` is how far the plan is from the
    bound at most, as a ratio. Tokens a second count all sequences of the batch together.
    """

    model: str
    goal: SplitGoal
    context_tokens: int
    batch: int
    layer_count: int
    shares: tuple[DeviceShare, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    decode_tokens_per_second: float | None = None
    sequence_tokens_per_second: float | None = None
    """What one sequence sees."""
    prefill_tokens_per_second: float | None = None
    bottleneck: str = ""
    """The device that costs the most time; or a link, by its two devices."""
    optimal: bool = False
    gap: float | None = None
    assumptions: tuple[str, ...] = ()
    shortage: Shortage | None = None
    devices: tuple[SplitDevice, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        check_whole("context_tokens", self.context_tokens, low=1)
        check_whole("batch", self.batch, low=1)
        if self.goal not in tuple(SplitGoal):
            raise UnknownName("goal", self.goal, [one.value for one in SplitGoal])

    @property
    def fits(self) -> bool:
        """Whether there is a split at all."""
        return bool(self.shares)

    @property
    def layer_counts(self) -> dict[str, int]:
        """How many layers each device gets, in the order of the layers."""
        return {share.device_id: share.layer_count for share in self.shares}
