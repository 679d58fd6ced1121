"""Whether a device can be relied on: the verdicts, what changes them, and cordons."""

from __future__ import annotations

from enum import StrEnum

from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_number, check_text


class Health(StrEnum):
    """Whether a device can be relied on."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    LOST = "lost"
    SLEEPING = "sleeping"


class ThrottleKind(StrEnum):
    """Why a device holds its clock back, in words that all vendors share.

    What is no trouble, such as being idle or keeping to clocks that somebody asked for, has none.
    """

    THERMAL = "thermal"
    """It is too hot, or its voltage regulators are."""
    POWER_BRAKE = "power_brake"
    """The machine's power supply asked for it."""
    HARDWARE = "hardware"
    """A signal from outside the driver, which does not tell more."""
    POWER_LIMIT = "power_limit"
    """It works at the limit of its power or current: as meant, under full load."""


class FaultAction(StrEnum):
    """What a fault that a driver reported asks for, as the vendor's own catalogue sorts them."""

    IGNORE = "ignore"
    RESTART_APPLICATION = "restart_application"
    """The program failed, the device is usable."""
    CHECK = "check"
    """Somebody has to look: cables, power, firmware."""
    RESET_DEVICE = "reset_device"
    RESTART_MACHINE = "restart_machine"


class DeviceFault(WireValue, frozen=True, kw_only=True):
    """A fault that a driver reported by number, such as an NVIDIA XID; ``at`` is Unix seconds."""

    device_id: str
    code: int
    what: str
    action: FaultAction
    at: float


class HealthVerdict(WireValue, frozen=True, kw_only=True):
    """What is known of a device's health: the worst that holds, and all reasons, the worst first.

    ``since`` is when this health began, in Unix seconds; None where nothing was heard yet.
    """

    health: Health = Health.OK
    reasons: tuple[str, ...] = ()
    since: float | None = None
    faults: tuple[DeviceFault, ...] = ()
    """Those that its driver reported, and that nothing has cleared since."""


class HealthEvent(WireValue, frozen=True, kw_only=True):
    """A change of a device's health, or of the reasons behind it; ``at`` is Unix seconds."""

    device_id: str
    before: Health
    after: Health
    reasons: tuple[str, ...] = ()
    at: float


BY_HEALTH = "health"
"""Who cordoned a device, where no person did."""


class Cordon(WireValue, frozen=True, kw_only=True):
    """A device kept out of scheduling, by a person or by health.

    ``since`` and ``until`` are Unix seconds; ``until`` is None where only an uncordon ends it.

    Raises:
        InvalidValue: for an empty identity or reason.

    """

    hardware_id: str
    device_id: str
    why: str
    by: str
    """The user's name, or ``"health"``."""
    since: float
    until: float | None = None
    draining: bool = False
    """True while work that was there before is let finish."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("hardware_id", "device_id", "why", "by"):
            check_text(field, getattr(self, field))
        check_number("since", self.since)
        check_number("until", self.until, optional=True)

    @property
    def by_health(self) -> bool:
        """True where no person set it: then a probe that passes lifts it."""
        return self.by == BY_HEALTH
