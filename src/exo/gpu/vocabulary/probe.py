"""What a device really delivers, as measured on it."""

from __future__ import annotations

from exo.gpu.vocabulary.errors import InvalidValue
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole


class Measure(WireValue, frozen=True, kw_only=True):
    """One measured figure: the median of ``runs`` and the range they spread over."""

    median: float
    lowest: float
    highest: float
    runs: int

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("median", "lowest", "highest"):
            check_number(field, getattr(self, field), low=0)
        check_whole("runs", self.runs, low=1)


class ProbeResult(WireValue, frozen=True, kw_only=True):
    """Measured speed of a device; what could not be measured is None, and ``reasons`` says why.

    GB/s and GFLOP/s count 10**9. ``measured_at`` is Unix time in seconds. A result holds for the
    device's ``hardware_id`` as long as ``driver_version`` is the same.
    """

    device_id: str
    hardware_id: str
    driver_version: str | None = None
    measured_at: float
    memory_gbps: Measure | None = None
    """Bytes read and written by a copy within the device's memory."""
    fp32_gflops: Measure | None = None
    """Fused or not, a multiply and an add count as two."""
    host_to_device_gbps: Measure | None = None
    device_to_host_gbps: Measure | None = None
    launch_seconds: Measure | None = None
    """From asking for an empty kernel until it is known to be done."""
    reasons: dict[str, str] = {}  # msgspec copies an empty default for each value

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("device_id", self.device_id)
        check_text("hardware_id", self.hardware_id)
        check_number("measured_at", self.measured_at)


class PairResult(WireValue, frozen=True, kw_only=True):
    """Measured speed of copies from one device to another; None where ``reason`` says why.

    GB/s count 10**9 bytes, each once. ``measured_at`` is Unix time in seconds. A result holds
    for both hardware ids as long as both driver versions are the same.
    """

    source: str
    target: str
    source_hardware_id: str
    target_hardware_id: str
    source_driver_version: str | None = None
    target_driver_version: str | None = None
    measured_at: float
    gbps: Measure | None = None
    through_host: bool | None = None
    """Whether the way leads through the host's memory; None where the driver does not tell."""
    reason: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("source", "target", "source_hardware_id", "target_hardware_id"):
            check_text(field, getattr(self, field))
        if self.source == self.target:
            raise InvalidValue("target", self.target, "another device than the source")
        check_number("measured_at", self.measured_at)
