"""What a person set for a device: how much of it may be used, and how gladly."""

from __future__ import annotations

from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text, check_whole

# A browser's window or two: what a desktop takes at any time beyond what it holds at the moment.
DESKTOP_BYTES = 512 * 2**20


class DeviceSettings(WireValue, frozen=True, kw_only=True):
    """Settings of one device; every default leaves it as it was found.

    Raises:
        InvalidValue: naming the field.

    """

    avoid: bool = False
    """Taken only where nothing else serves."""
    weight: float = 1.0
    """Multiplies its score."""
    reserve_bytes: int | None = None
    """Memory that others are to have, what they use already included. None: nothing was set, and
    on a card that drives a display it is what others use there and :data:`DESKTOP_BYTES` more."""
    labels: tuple[str, ...] = ()
    slots: int | None = None
    """How many jobs at once; None: as many as the device states."""
    max_share: float = 1.0
    """The largest part of it that leases may hold together, within 0..1."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_number("weight", self.weight, low=0)
        check_whole("reserve_bytes", self.reserve_bytes, optional=True)
        check_whole("slots", self.slots, low=1, optional=True)
        check_number("max_share", self.max_share, low=0, high=1)
        for label in self.labels:
            check_text("labels", label)
