"""When a device is not well: rules as data, each with a threshold to enter and one to leave."""

from __future__ import annotations

import math

import msgspec

from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, UnknownName
from exo.gpu.vocabulary.health import FaultAction, Health, ThrottleKind
from exo.gpu.vocabulary.metrics import SERIES
from exo.gpu.vocabulary.snapshot import STALE_AFTER_SECONDS
from exo.gpu.vocabulary.units import check_number, check_text

SEVERITY = (Health.OK, Health.SLEEPING, Health.DEGRADED, Health.FAILED, Health.LOST)
"""From the best to the worst: the worst that holds is the verdict."""

THROTTLE, RISE, FAULT = "throttle.", "rise.", "fault."
COUNTERS = ("corrected_errors", "uncorrected_errors")
SILENT, FAILING, HANGING, MISSING, SLEEPING = (
    "silent_seconds",
    "failing",
    "hanging",
    "missing",
    "sleeping",
)
LOOKS: frozenset[str] = frozenset(
    (
        *SERIES,
        *(f"{THROTTLE}{kind}" for kind in ThrottleKind),
        *(f"{RISE}{name}" for name in COUNTERS),
        *(f"{FAULT}{action}" for action in FaultAction),
        *(SILENT, FAILING, HANGING, MISSING, SLEEPING),
    )
)
"""All that a rule may look at: a reading by its name; 1 or 0 for a kind of throttling; by how much
a counter rose within the rule's window; how many faults of an action stand; seconds since anything
was heard; and 1 or 0 for reads that fail, a call that hangs, a device that the last inventory
missed, and one that sleeps."""

LIMITS = ("warn_celsius", "critical_celsius", "stale_after_seconds")

# A common choice among monitors: where fans turn up, and where many chips begin to slow down.
WARN_CELSIUS, CRITICAL_CELSIUS = 80.0, 90.0
HYSTERESIS_CELSIUS = 2.0

# A device is stale after so many of its cadences, where that is longer than the usual limit.
STALE_AFTER_CADENCES = 3


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One way in which a device may not be well.

    It holds once what it looks at was above ``above`` for ``hold_seconds``, and until that was at
    or below ``until`` for ``clear_seconds``; in between, and while it is unknown, nothing changes.

    Raises:
        InvalidValue: naming the field.

    """

    name: str
    looks_at: str
    """One of :data:`LOOKS`."""
    above: float
    until: float
    health: Health
    message: str
    """May have ``{limit:g}``, ``{whose}`` ("its own" or "the usual") and ``{detail}``."""
    hold_seconds: float = 0.0
    clear_seconds: float = 0.0
    window_seconds: float = 0.0
    """Of a counter: the time within which its rise counts."""
    limit: str = ""
    """Which limit of the device, where it is known, moves ``above`` and ``until``."""
    assumed_health: Health | None = None
    """The verdict where the limit is not the device's own, if another."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("name", "message"):
            check_text(field, getattr(self, field))
        if self.looks_at not in LOOKS:
            raise UnknownName("looks_at", self.looks_at, LOOKS)
        if self.limit and self.limit not in LIMITS:
            raise UnknownName("limit", self.limit, LIMITS)
        check_number("above", self.above)
        check_number("until", self.until, high=self.above)
        for field in ("hold_seconds", "clear_seconds", "window_seconds"):
            check_number(field, getattr(self, field), low=0)
        if self.looks_at.startswith(RISE) != (self.window_seconds > 0):
            raise InvalidValue("window_seconds", self.window_seconds, "above 0 for counters only")
        for health in (self.health, self.assumed_health):
            if health is Health.OK:
                raise InvalidValue("health", health, "a health other than ok")


def _temperature(name: str, celsius: float, health: Health, message: str) -> Rule:
    return Rule(
        name=f"temperature {name}",
        looks_at="temperature_celsius",
        above=celsius,
        until=celsius - HYSTERESIS_CELSIUS,
        limit=f"{name}_celsius",
        health=health,
        assumed_health=Health.DEGRADED,
        message=message,
    )


def _throttling(kind: ThrottleKind, message: str) -> Rule:
    """A second at the limit is nothing; what goes on for ten slows the work."""
    return Rule(
        name=f"throttled: {kind}",
        looks_at=f"{THROTTLE}{kind}",
        above=0,
        until=0,
        hold_seconds=10,
        clear_seconds=10,
        health=Health.DEGRADED,
        message=message,
    )


def _flag(looks_at: str, health: Health, message: str, *, hold_seconds: float = 0.0) -> Rule:
    return Rule(
        name=looks_at,
        looks_at=looks_at,
        above=0,
        until=0,
        health=health,
        message=message,
        hold_seconds=hold_seconds,
    )


def _errors(
    name: str, kind: str, health: Health, message: str, *, more_than: int, window_seconds: float
) -> Rule:
    return Rule(
        name=name,
        looks_at=f"{RISE}{kind}",
        above=more_than,
        until=0,
        window_seconds=window_seconds,
        health=health,
        message=message,
    )


DEFAULT_RULES: tuple[Rule, ...] = (
    _temperature(
        "critical",
        CRITICAL_CELSIUS,
        Health.FAILED,
        "critically hot: above {limit:g} C ({whose} limit)",
    ),
    _temperature("warn", WARN_CELSIUS, Health.DEGRADED, "hot: above {limit:g} C ({whose} limit)"),
    _throttling(ThrottleKind.THERMAL, "slowed down by heat"),
    _throttling(ThrottleKind.POWER_BRAKE, "slowed down by the power supply (power brake)"),
    _throttling(ThrottleKind.HARDWARE, "slowed down by its hardware"),
    # One uncorrected error costs the program that met it; many within the hour are a broken part.
    _errors(
        "failing memory",
        "uncorrected_errors",
        Health.FAILED,
        "more than {limit:g} uncorrected memory errors within an hour",
        more_than=9,
        window_seconds=3600,
    ),
    _errors(
        "uncorrected errors",
        "uncorrected_errors",
        Health.DEGRADED,
        "uncorrected memory errors within the last hour",
        more_than=0,
        window_seconds=3600,
    ),
    _errors(
        "corrected errors",
        "corrected_errors",
        Health.DEGRADED,
        "more than {limit:g} corrected memory errors a minute",
        more_than=10,
        window_seconds=60,
    ),
    _flag(f"{FAULT}{FaultAction.CHECK}", Health.DEGRADED, "{detail}: somebody has to look"),
    _flag(f"{FAULT}{FaultAction.RESET_DEVICE}", Health.FAILED, "{detail}: it needs a reset"),
    _flag(
        f"{FAULT}{FaultAction.RESTART_MACHINE}",
        Health.FAILED,
        "{detail}: the machine needs a restart",
    ),
    # Drivers give transient errors; what still fails five seconds later is no such thing.
    _flag(FAILING, Health.FAILED, "it cannot be read: {detail}", hold_seconds=5),
    _flag(HANGING, Health.DEGRADED, "a call to its driver hangs"),
    Rule(
        name="stale",
        looks_at=SILENT,
        above=STALE_AFTER_SECONDS,
        until=STALE_AFTER_SECONDS,
        limit="stale_after_seconds",
        health=Health.LOST,
        message="no sample for more than {limit:g} s",
    ),
    _flag(MISSING, Health.LOST, "missing since the last inventory"),
    _flag(SLEEPING, Health.SLEEPING, "powered down, and not woken for a reading"),
)
"""What holds unless somebody says otherwise. At a critical temperature that the device itself
states it takes no new work until it has cooled; one that is only assumed puts it behind all others,
since chips differ and some are built to run hotter."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A device's own limits; None where it states none, infinite where there is to be none."""

    warn_celsius: float | None = None
    critical_celsius: float | None = None
    stale_after_seconds: float | None = None


def limits_of(device: GPUDevice | None, *, stale_after_seconds: float | None = None) -> Limits:
    """The limits to judge a device by.

    A processor is built to run at its limit and holds itself there, so the host has none unless
    it states one. A device that states only where it warns is not critical below that, and one
    that states only where it is critical warns at or below that.
    """
    if device is None:
        return Limits(stale_after_seconds=stale_after_seconds)
    warn, critical = device.warn_celsius, device.critical_celsius
    if device.device_class is DeviceClass.HOST:
        warn = math.inf if warn is None else warn
        critical = math.inf if critical is None else critical
    elif warn is not None and critical is None and warn > CRITICAL_CELSIUS:
        critical = math.inf
    elif critical is not None and warn is None and critical < WARN_CELSIUS:
        warn = critical
    return Limits(
        warn_celsius=warn, critical_celsius=critical, stale_after_seconds=stale_after_seconds
    )


def stale_after(cadence_seconds: float) -> float:
    """Seconds of silence after which a device that is read so often is lost."""
    return max(STALE_AFTER_SECONDS, STALE_AFTER_CADENCES * cadence_seconds)
