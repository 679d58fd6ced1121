"""What an i915 or xe card tells of the present: sysfs, hwmon, and two readings of counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, drm_clients
from exo.gpu.backends.throttling import throttle_kinds
from exo.gpu.vocabulary.errors import BackendError, ReadingMissing
from exo.gpu.vocabulary.health import ThrottleKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exo.gpu.backends.counter_rates import CounterRates

# Of xe, then of i915. Actual clocks before those asked for, all in MHz.
_CLOCKS = (
    "device/tile0/gt0/freq0/act_freq",
    "gt_act_freq_mhz",
    "device/tile0/gt0/freq0/cur_freq",
    "gt_cur_freq_mhz",
)
# Milliseconds in which the (first, computing) GT was idle and powered down.
_IDLE = (
    "device/tile0/gt0/gtidle/idle_residency_ms",
    "gt/gt0/rc6_residency_ms",
    "power/rc6_residency_ms",
)
_THROTTLING = (
    ("device/tile0/gt0/freq0/throttle/status", "device/tile0/gt0/freq0/throttle/reason_"),
    ("gt/gt0/throttle_reason_status", "gt/gt0/throttle_reason_"),
)
# The names of xe and i915 (kernel: xe_gt_throttle.c, i915/gt/intel_gt_sysfs_pm.c).
_THROTTLE_KINDS = {
    ThrottleKind.THERMAL: "thermal soc_thermal mem_thermal vr_thermal soc_avg_thermal ratl "
    "vr_thermalert",
    ThrottleKind.POWER_BRAKE: "pwrbrk",
    ThrottleKind.HARDWARE: "prochot",
    ThrottleKind.POWER_LIMIT: "pl1 pl2 pl4 vr_tdc iccmax fastvmode psys_pl1 psys_pl2 psys_crit",
}
THROTTLE_MEANINGS: dict[str, ThrottleKind | None] = {
    "p0_freq": None,
    **{word: kind for kind, words in _THROTTLE_KINDS.items() for word in words.split()},
}
# Microwatts: sustained limits of the card, then of the package.
_LIMITS = ("power1_max", "power1_cap", "power2_max", "power2_cap")

# Millidegrees Celsius of absolute zero.
_LOWEST = -273_150

# Arc cards have a PCIe switch of their own and show the link within it, which never changes.
_INNER_LINK = ("2.5 GT/s PCIe", "1")
# The switch's lower and upper port, above the card, and what such ports are (pci.ids, class 0604).
_SWITCH = ("device/..", "device/../..")
_BRIDGE = "0x0604"
_INTEL = "0x8086"

# Settings, what is looked up in the devices above the card, and what moves slowly.
DEAR = ("power_limit_watts", "fan_percent", "pcie_generation", "pcie_width")

_MEMORY = "Intel's drivers tell memory to privileged programs only"


def temperature_limits(card: drm.Card) -> tuple[float | None, float | None]:
    """Degrees from where the package is slowed down, and from where it switches itself off.

    Raises:
        DeviceLost: when the card is gone.

    """
    return drm.temperature_limits(card, lambda: _package(card))


def _package(card: drm.Card) -> str:
    return card.labelled("temp", ["pkg"])


class Source:
    """One card, the counters seen of it before, and where processes are listed."""

    def __init__(self, card: drm.Card, rates: CounterRates, proc: Path) -> None:
        self._card = card
        self._rates = rates
        self._proc = proc

    def read(self, *, dear: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
        """All readings by field name, and why the others are missing; without ``dear`` not those.

        Raises:
            DeviceLost: when the card is gone.

        """
        card = self._card
        calls: dict[str, Callable[[], Any]] = {
            # hwmon speaks microwatts, microjoules and millidegrees.
            "power_limit_watts": lambda: self._power_limit_microwatts() / 1e6,
            "energy_joules": lambda: self._energy_microjoules() / 1e6,
            "temperature_celsius": lambda: self._millidegrees() / 1e3,
            "memory_temperature_celsius": lambda: (
                card.number_of(card.labelled("temp", ["vram"]), low=_LOWEST) / 1e3
            ),
            "clock_rate_mhz": lambda: card.number_of(*_CLOCKS),
            "fan_percent": self._fan_percent,
            "throttle_reasons": self._throttle_reasons,
            "pcie_generation": lambda: card.link_generation(self._linked()),
            "pcie_width": lambda: card.number_of(f"{self._linked()}/current_link_width", low=1),
        }
        if not dear:
            calls = {name: call for name, call in calls.items() if name not in DEAR}
        values, missing = drm.gather(calls)
        kinds = throttle_kinds(values.get("throttle_reasons"), THROTTLE_MEANINGS)
        if kinds is not None:
            values["throttle_kinds"] = kinds
        self._add_power(values, missing)
        self._add_utilization(values, missing)
        # The query of used memory answers "0" or "all free" to users without CAP_PERFMON.
        missing["memory_used_bytes"] = missing["memory_total_bytes"] = _MEMORY
        return values, missing

    def _add_power(self, values: dict[str, Any], missing: dict[str, str]) -> None:
        """What the driver tells of the instant, else the growth of the energy counter."""
        try:
            instant = self._card.number_of(f"{self._card.hwmon()}/power1_input")
        except ReadingMissing as reason:
            missing["power_watts"] = str(reason)
        else:
            values |= {"power_watts": instant / 1e6, "power_window_seconds": 0.0}
            return
        if "energy_joules" not in values:
            return
        try:
            rate = self._rates.rate((self._card.place, "energy"), values["energy_joules"])
        except ReadingMissing as reason:
            missing["power_watts"] = str(reason)
            return
        del missing["power_watts"]
        values["power_watts"] = rate.per_second
        values["power_window_seconds"] = rate.seconds

    def _add_utilization(self, values: dict[str, Any], missing: dict[str, str]) -> None:
        """The time not idle; else the work of the programs that we may see, a lower bound."""
        field = "compute_utilization_percent"
        try:
            idle = self._card.number_of(*_IDLE)
        except ReadingMissing as reason:
            missing[field] = str(reason)
        else:
            try:
                rate = self._rates.rate((self._card.place, "idle"), idle)
            except ReadingMissing as reason:
                missing[field] = str(reason)
            else:
                values[field] = min(100.0, max(0.0, 100 - rate.per_second / 10))
            return
        try:
            seen = drm_clients.clients(self._card.pci_address, proc=self._proc)
            values[field] = drm_clients.busy_percent(seen, self._rates, self._card.place)
        except BackendError as reason:
            missing[field] += f"; {reason}"
            return
        del missing[field]
        values["utilization_is_lower_bound"] = True

    def _power_limit_microwatts(self) -> int:
        folder = self._card.hwmon()
        return self._card.number_of(*(f"{folder}/{name}" for name in _LIMITS), low=1)

    def _energy_microjoules(self) -> int:
        """The whole card's, else its package's, else the only one (i915 has no labels)."""
        card = self._card
        return drm.first(
            lambda: card.number_of(card.labelled("energy", ["card", "pkg"])),
            lambda: card.number_of(f"{card.hwmon()}/energy1_input"),
        )

    def _millidegrees(self) -> int:
        """The package's temperature (xe), or the one sensor that i915 has."""
        card = self._card
        return drm.first(
            lambda: card.number_of(_package(card), low=_LOWEST),
            lambda: card.number_of(f"{card.hwmon()}/temp1_input", low=_LOWEST),
        )

    def _fan_percent(self) -> float:
        """The fastest fan's speed as a share of its largest."""
        card = self._card
        shares: list[float] = []
        for name in card.names(f"{card.hwmon()}/fan*_max"):
            most = drm.optional(lambda name=name: card.number_of(name, low=1))
            if most is not None:
                speed = card.number_of(name.replace("_max", "_input"))
                shares.append(min(100.0, round(100 * speed / most, 1)))
        if not shares:
            raise ReadingMissing("the driver tells no largest speed of a fan")
        return max(shares)

    def _throttle_reasons(self) -> tuple[str, ...]:
        card = self._card
        for status, prefix in _THROTTLING:
            held = drm.optional(lambda status=status: card.number_of(status, high=1))
            if held is None:
                continue
            reasons = [name for name in card.names(f"{prefix}*") if name != status]
            given = [
                name.removeprefix(prefix)
                for name in reasons
                if drm.optional(lambda name=name: card.number_of(name))
            ]
            return tuple(given) if given or not held else ("unknown",)
        raise ReadingMissing("the driver has no throttle status")

    def _linked(self) -> str:
        """The PCI device whose link upwards is the card's: itself, or the top of its own switch."""
        names = ("device/max_link_speed", "device/max_link_width")
        most = tuple(drm.optional(lambda name=name: self._card.text(name)) for name in names)
        if most != _INNER_LINK:
            return "device"
        for bridge in _SWITCH:
            kind = drm.optional(lambda bridge=bridge: self._card.text(f"{bridge}/class")) or ""
            maker = drm.optional(lambda bridge=bridge: self._card.text(f"{bridge}/vendor"))
            if not kind.startswith(_BRIDGE) or maker != _INTEL:
                raise ReadingMissing("the card shows the link within itself only")
        return _SWITCH[-1]
