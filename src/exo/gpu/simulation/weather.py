"""What goes wrong in a simulated cluster."""

from __future__ import annotations

import msgspec

from exo.gpu.vocabulary.units import check_number


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong; by default nothing.

    Raises:
        InvalidValue: for a time or part that cannot be.

    """

    failure_seconds: float | None = None
    """Mean time until a device fails, the same for each and at any age; None: never."""
    repair_seconds: float = 3600.0
    """Until it is back. What ran on it starts again."""
    telemetry_delay_seconds: float = 0.0
    """How late its use of memory is known; leases are known at once, as they are in one store."""
    noise_ratio: float = 0.0
    """The standard deviation of what is read, as a part of it."""

    def __post_init__(self) -> None:
        """Check the figures."""
        check_number("failure_seconds", self.failure_seconds, low=0, optional=True)
        for field in ("repair_seconds", "telemetry_delay_seconds", "noise_ratio"):
            check_number(field, getattr(self, field), low=0)
