"""What was learned of a kind of work: how long it takes on a device, and the memory it takes."""

from __future__ import annotations

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

COVERED = 0.9
"""The part of all times that should lie within the range of a forecast."""


class Forecast(WireValue, frozen=True, kw_only=True):
    """How long one item of a kind takes on a device: the median, and a range for nine of ten.

    ``samples`` are the outcomes of the kind on this very device that it rests on; 0 where it was
    told from the kind on other devices and from its relatives. ``basis`` says so in words.

    Raises:
        InvalidValue: for times that cannot be, or a range without the median.

    """

    seconds: float
    low_seconds: float
    high_seconds: float
    samples: int = 0
    basis: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("seconds", "low_seconds", "high_seconds"):
            check_number(field, getattr(self, field), low=0)
        check_whole("samples", self.samples)
        if not self.low_seconds <= self.seconds <= self.high_seconds:
            expected = f"within {self.low_seconds:g}..{self.high_seconds:g}"
            raise InvalidValue("seconds", self.seconds, expected)


class Finish(WireValue, frozen=True, kw_only=True):
    """When work would be done on a device if it were given there now, in seconds from now.

    ``wait_seconds`` until the device is free for it, ``load_seconds`` until its data are there,
    then ``run``. What is not known of the first two counts as 0, and ``notes`` say so.
    """

    run: Forecast
    wait_seconds: float = 0.0
    load_seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("wait_seconds", "load_seconds"):
            check_number(field, getattr(self, field), low=0)

    @property
    def seconds(self) -> float:
        """All three together, by the median of the run."""
        return self.wait_seconds + self.load_seconds + self.run.seconds

    @property
    def low_seconds(self) -> float:
        """The early end of the range."""
        return self.wait_seconds + self.load_seconds + self.run.low_seconds

    @property
    def high_seconds(self) -> float:
        """The late end of the range."""
        return self.wait_seconds + self.load_seconds + self.run.high_seconds


class MemoryAdvice(WireValue, frozen=True, kw_only=True):
    """What a kind of work was seen to take of a device's memory, and what to ask for.

    ``seen_bytes`` is the 99th percentile of the peaks (with fewer than a hundred the largest),
    ``advised_bytes`` that and a margin, of ``samples`` runs.
    """

    kind: str
    seen_bytes: int
    advised_bytes: int
    samples: int

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("kind", self.kind)
        check_whole("seen_bytes", self.seen_bytes)
        check_whole("advised_bytes", self.advised_bytes, low=1)
        check_whole("samples", self.samples, low=1)
