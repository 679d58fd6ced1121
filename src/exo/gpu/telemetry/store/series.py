"""What a history answers: its devices, series of one reading, events, and how much there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.telemetry.store.rollups import PARTS
from exo.gpu.vocabulary.messages import WireValue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Numbers = NDArray[np.float64]


class KnownDevice(WireValue, frozen=True, kw_only=True):
    """A device of which there is a history; times are Unix seconds, None where none is known."""

    hardware_id: str
    node: str
    device_id: str
    """What it was called last."""
    name: str
    first_seen: float | None
    last_seen: float | None


class KeptEvent(WireValue, frozen=True, kw_only=True):
    """An event of a device; ``at`` is Unix seconds."""

    kind: str
    """``"health"`` for a HealthEvent, ``"fault"`` for a DeviceFault."""
    device_id: str
    at: float
    fields: dict[str, Any]


class HistoryStatistics(WireValue, frozen=True, kw_only=True):
    """How much there is, and from when on; times are Unix seconds, None where there is nothing."""

    used_bytes: int
    devices: int
    raw_minutes: int
    """Minutes of which samples are kept as they came, of all devices together."""
    raw_since: float | None
    rollups_since: float | None
    events: int


class Series(msgspec.Struct, frozen=True):
    """One reading of one device over time, in points of equal length, the oldest first.

    A point without any reading has the count 0, and NaN for the rest.
    """

    device: KnownDevice
    metric: str
    since: float
    """Start of the first point, in Unix seconds."""
    step_seconds: float
    source: str
    """``"raw"`` where samples were read, ``"rollups"`` where those of minutes were."""
    minimum: Numbers
    mean: Numbers
    maximum: Numbers
    count: Whole

    @property
    def times(self) -> Numbers:
        """The start of each point, in Unix seconds."""
        import numpy as np

        return self.since + self.step_seconds * np.arange(len(self.count), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; unknown is None."""
        columns = {
            part: [None if math.isnan(value) else value for value in getattr(self, part).tolist()]
            for part in PARTS
        }
        return {
            "device": self.device.to_dict(),
            "metric": self.metric,
            "since": self.since,
            "step_seconds": self.step_seconds,
            "source": self.source,
            "times": self.times.tolist(),
            **columns,
        }
