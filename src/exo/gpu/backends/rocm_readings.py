"""What an amdgpu card tells of the present: sysfs and hwmon first, then ``gpu_metrics``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, gpu_metrics
from exo.gpu.backends.throttling import throttle_kinds
from exo.gpu.vocabulary.errors import ReadingMissing
from exo.gpu.vocabulary.health import ThrottleKind

if TYPE_CHECKING:
    from collections.abc import Callable

    _Calls = dict[str, Callable[[], Any]]

# Millidegrees Celsius of absolute zero.
_LOWEST = -273_150

# hwmon writes duty cycles as 0..255 (kernel, Documentation/hwmon/sysfs-interface.rst).
_LARGEST_DUTY = 255

# "1: 8.0GT/s, x16 619Mhz *": the level in use has a star; several may.
_LINK_LEVEL = re.compile(r"([0-9.]+)GT/s,? *x([0-9]+).*\*")
_CLOCK_LEVEL = re.compile(r"([0-9]+)mhz *\*", re.IGNORECASE)
_ANY_CLOCK_LEVEL = re.compile(r"([0-9]+)mhz", re.IGNORECASE)
_LINK_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}

# Reading -> label of its hwmon sensor, and where the levels of a clock are listed.
_TEMPERATURES = {
    "temperature_celsius": "edge",
    "hotspot_temperature_celsius": "junction",
    "memory_temperature_celsius": "mem",
}
_CLOCKS = {
    "clock_rate_mhz": ("sclk", "device/pp_dpm_sclk"),
    "memory_clock_mhz": ("mclk", "device/pp_dpm_mclk"),
}

# Beginnings of the words of gpu_metrics: heat; a signal from outside; limits of power and current.
_THROTTLE_KINDS = {
    "temp_": ThrottleKind.THERMAL,
    "vrhot": ThrottleKind.THERMAL,
    "prochot": ThrottleKind.HARDWARE,
    **dict.fromkeys(
        ("ppt", "spl", "fppt", "sppt", "tdc_", "edc_", "apcc", "ppm"), ThrottleKind.POWER_LIMIT
    ),
    "fit": None,
}
THROTTLE_MEANINGS = {
    word: next(kind for start, kind in _THROTTLE_KINDS.items() if word.startswith(start))
    for word in gpu_metrics.THROTTLERS.values()
}

_ERROR_COUNT = re.compile(r"^(ue|ce): *([0-9]+)", re.MULTILINE)


# Settings, what the kernel looks up in several files, and what moves slowly.
DEAR = (
    "power_limit_watts",
    "fan_percent",
    "corrected_errors",
    "uncorrected_errors",
    "pcie_generation",
    "pcie_width",
)


def read(
    card: drm.Card, *, integrated: bool, dear: bool = True
) -> tuple[dict[str, Any], dict[str, str]]:
    """All readings by field name, and why the others are missing; without ``dear`` not those.

    Raises:
        DeviceLost: when the card is gone.

    """
    table = _Table(card)
    calls = {
        **_work(card, table, integrated=integrated),
        **_state(card, table),
        **_sensors(card, table),
    }
    if not dear:
        calls = {name: call for name, call in calls.items() if name not in DEAR}
    values, missing = drm.gather(calls)
    kinds = throttle_kinds(values.get("throttle_reasons"), THROTTLE_MEANINGS)
    if kinds is not None:
        values["throttle_kinds"] = kinds
    if "power_watts" in values and _power_is_instant(card):
        values["power_window_seconds"] = 0.0
    if values.get("memory_used_bytes", 0) > values.get("memory_total_bytes", 0):
        del values["memory_used_bytes"]
        missing["memory_used_bytes"] = "the driver tells no total that it fits in"
    return values, missing


def _work(card: drm.Card, table: _Table, *, integrated: bool) -> _Calls:
    """Memory, busy shares, power and energy."""
    return {
        "memory_used_bytes": lambda: memory(card, "used", integrated=integrated),
        "memory_total_bytes": lambda: memory(card, "total", integrated=integrated),
        "compute_utilization_percent": table.after(
            "compute_utilization_percent",
            lambda: card.number_of("device/gpu_busy_percent", high=100),
        ),
        "memory_utilization_percent": table.after(
            "memory_utilization_percent",
            lambda: card.number_of("device/mem_busy_percent", high=100),
        ),
        # hwmon speaks microwatts, millidegrees and hertz.
        "power_watts": table.after("power_watts", lambda: _power_microwatts(card) / 1e6),
        "power_limit_watts": lambda: card.number_of(f"{card.hwmon()}/power1_cap") / 1e6,
        "energy_joules": table.only("energy_joules"),
    }


def _state(card: drm.Card, table: _Table) -> _Calls:
    """Fan, throttling, errors and link."""
    return {
        "fan_percent": lambda: _fan_percent(card),
        "throttle_reasons": table.only("throttle_reasons"),
        "corrected_errors": lambda: _errors(card, "ce"),
        "uncorrected_errors": lambda: _errors(card, "ue"),
        # The link that a card's own switch shows within is always the fastest; the firmware and
        # the table of levels tell of the one to the machine.
        "pcie_generation": table.before(
            "pcie_generation", lambda: _link_level(card)[0], card.link_generation
        ),
        "pcie_width": table.before(
            "pcie_width",
            lambda: _link_level(card)[1],
            lambda: card.number_of("device/current_link_width", low=1),
        ),
    }


def _sensors(card: drm.Card, table: _Table) -> _Calls:
    """Temperatures and clocks."""
    calls: _Calls = {}
    for field, label in _TEMPERATURES.items():
        calls[field] = table.after(field, lambda label=label: _celsius(card, label))
    for field, (label, levels) in _CLOCKS.items():
        calls[field] = table.after(
            field,
            lambda label=label: card.number_of(card.labelled("freq", [label])) / 1e6,
            lambda levels=levels: _level_mhz(card, levels),
        )
    return calls


def memory(card: drm.Card, what: str, *, integrated: bool) -> int:
    """Bytes of video memory, total or used; where it is the machine's, what is mapped counts too.

    Raises:
        ReadingMissing: with the reason.
        DeviceLost: when the card is gone.

    """
    own = card.number_of(f"device/mem_info_vram_{what}")
    return own + card.number_of(f"device/mem_info_gtt_{what}") if integrated else own


def largest_clock_mhz(card: drm.Card) -> float:
    """The highest level of the shader clock.

    Raises:
        ReadingMissing: with the reason.
        DeviceLost: when the card is gone.

    """
    levels = _ANY_CLOCK_LEVEL.findall(card.text("device/pp_dpm_sclk"))
    if not levels:
        raise ReadingMissing("device/pp_dpm_sclk lists no level")
    return float(max(map(int, levels)))


def temperature_limits(card: drm.Card) -> tuple[float | None, float | None]:
    """Degrees from where the card slows itself down, and from where it switches itself off.

    Raises:
        DeviceLost: when the card is gone.

    """
    return drm.temperature_limits(card, lambda: card.labelled("temp", ["edge"]))


class _Table:
    """``gpu_metrics``, read once per sample, as a source before or behind others."""

    def __init__(self, card: drm.Card) -> None:
        self._values: dict[str, Any] = {}
        self._missing: dict[str, str] = {}
        self._reason = ""
        try:
            self._values, self._missing = gpu_metrics.readings(card.whole("device/gpu_metrics"))
        except ReadingMissing as reason:
            self._reason = str(reason)

    def only(self, field: str) -> Callable[[], Any]:
        """A reading that nothing else tells."""
        return lambda: self._get(field)

    def after(self, field: str, *others: Callable[[], Any]) -> Callable[[], Any]:
        """The first of the others that tells it, else the table."""
        return lambda: drm.first(*others, lambda: self._get(field))

    def before(self, field: str, *others: Callable[[], Any]) -> Callable[[], Any]:
        """The table, else the first of the others that tells it."""
        return lambda: drm.first(lambda: self._get(field), *others)

    def _get(self, field: str) -> Any:
        if field in self._values:
            return self._values[field]
        raise ReadingMissing(
            self._reason or self._missing.get(field) or f"gpu_metrics gives no {field}"
        )


def _celsius(card: drm.Card, label: str) -> float:
    return card.number_of(card.labelled("temp", [label]), low=_LOWEST) / 1e3


def _power_microwatts(card: drm.Card) -> int:
    folder = card.hwmon()
    return card.number_of(f"{folder}/power1_average", f"{folder}/power1_input")


def _power_is_instant(card: drm.Card) -> bool:
    """True for the value of the moment; the window of an average is not told."""
    averaged = card.names("device/hwmon/hwmon*/power1_average")
    told = drm.optional(lambda: card.number_of(f"{card.hwmon()}/power1_input"))
    return not averaged and told is not None


def _fan_percent(card: drm.Card) -> float:
    """How hard the fan is driven, else its speed as a share of the largest."""
    folder = card.hwmon()

    def driven() -> float:
        duty = card.number_of(f"{folder}/pwm1", high=_LARGEST_DUTY)
        return round(100 * duty / _LARGEST_DUTY, 1)

    def turning() -> float:
        most = card.number_of(f"{folder}/fan1_max", low=1)
        return round(100 * card.number_of(f"{folder}/fan1_input", high=most) / most, 1)

    return drm.first(driven, turning)


def _errors(card: drm.Card, kind: str) -> int:
    """ECC errors of all blocks of the card ("ue" or "ce") since the driver was loaded."""
    blocks = card.names("device/ras/*_err_count")
    if not blocks:
        raise ReadingMissing("the driver has no device/ras error counts: no ECC")
    total: int | None = None
    reasons: list[str] = []
    for name in blocks:
        try:
            text = card.text(name)
        except ReadingMissing as reason:
            reasons.append(str(reason))
            continue
        counts = dict(_ERROR_COUNT.findall(text))
        if kind in counts:
            total = (total or 0) + int(counts[kind])
        else:
            reasons.append(f"{name} holds {text[:40]!r}")
    if total is None:
        raise ReadingMissing(reasons[0])
    return total


def _link_level(card: drm.Card) -> tuple[int, int]:
    """Generation and width of the PCIe level in use."""
    text = card.text("device/pp_dpm_pcie")
    levels = {(float(speed), int(width)) for speed, width in _LINK_LEVEL.findall(text)}
    if len(levels) != 1:
        raise ReadingMissing(f"device/pp_dpm_pcie marks {len(levels)} levels as in use")
    ((speed, width),) = levels
    if speed not in _LINK_GENERATIONS:
        raise ReadingMissing(f"device/pp_dpm_pcie tells {speed:g} GT/s")
    return _LINK_GENERATIONS[speed], width


def _level_mhz(card: drm.Card, name: str) -> float:
    """The clock level in use, of cards without sensors."""
    found = _CLOCK_LEVEL.search(card.text(name))
    if found is None:
        raise ReadingMissing(f"{name} marks no level as in use")
    return float(found[1])
