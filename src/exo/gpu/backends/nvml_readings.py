"""Every reading of an NVIDIA GPU: which call gives it, in which unit, and what to ask instead."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.backends import host, nvml_library
from exo.gpu.backends.nvml_library import real
from exo.gpu.backends.nvml_throttling import named
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.vocabulary.device import GPUDevice

logger = logging.getLogger("exo.gpu.backends.cuda")

# nvml.h: NVML_FI_DEV_MEMORY_TEMP, NVML_FI_DEV_POWER_AVERAGE (over 1 s; Ampere and later except
# GA100), NVML_FI_DEV_POWER_INSTANT. Asked with scope 0, the GPU: on Grace Hopper scope 1 is the
# whole module.
_MEMORY_TEMPERATURE, _POWER_AVERAGE, _POWER_INSTANT = 82, 185, 186
_AVERAGE_SECONDS = 1.0

# 0xFFFF stands for "unknown" where a figure is known to be narrow: MHz, lanes, generations.
_NARROW = 0xFFFE
# Far above what a fan can be overdriven, far below the sentinels.
_FASTEST_FAN_PERCENT = 250
# Degrees Celsius that no silicon survives.
_HOTTEST = 300

_SHARED = "a MIG instance shares it with the rest of its GPU"
_UNKNOWN_TO_NVML = {"hotspot_temperature_celsius": "NVML does not tell it"}


class Reading(NamedTuple):
    """Fields of a sample that come together, and the calls that give them, best first.

    ``whole`` says that the figure is the whole GPU's: then a MIG instance asks its parent, or
    has no such reading where the figure is a sum over all instances (``shared``).
    """

    names: tuple[str, ...]
    ways: tuple[Callable[[Any, Any], tuple[Any, ...]], ...]
    whole: bool = True
    shared: bool = False


class Target(NamedTuple):
    """What to ask about one device: its own handle, and that of the GPU which it is a part of."""

    device: GPUDevice
    handle: Any
    parent: Any | None = None
    """None for a whole GPU."""


class Readings:
    """Reads devices, and remembers for each of them what its driver will not give.

    What is not supported or denied is not asked again until :meth:`forget`.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._absent: dict[tuple[str, Any], str] = {}

    def forget(self) -> None:
        """Ask everything again: the driver was opened anew."""
        self._absent = {}

    def sample(self, target: Target) -> tuple[dict[str, Any], dict[str, str]]:
        """Values by the names and in the units of GPUMetrics, and why the others are missing.

        Raises:
            pynvml.NVMLError: for what concerns the whole GPU or library.

        """
        values: dict[str, Any] = {}
        missing = dict(_UNKNOWN_TO_NVML)
        for reading in READINGS:
            found, reason = self._read(target, reading)
            if reading is MEMORY and found is None:
                found = self._unified(target, reason)
            for place, name in enumerate(reading.names):
                if found is not None and found[place] is not None:
                    values[name] = found[place]
                else:
                    missing[name] = reason if found is None else _HALF[name]
        return values, missing

    def _read(self, target: Target, reading: Reading) -> tuple[tuple[Any, ...] | None, str]:
        handle = target.handle
        if target.parent is not None and reading.whole:
            if reading.shared:
                return None, _SHARED
            handle = target.parent
        reason, passing = "", False
        for way in reading.ways:
            found, why, will_pass = self._try(target.device.device_id, reading, way, handle)
            if found is not None:
                return found, ""
            if will_pass or not passing:  # what may pass tells more than what never was
                reason, passing = why, will_pass
        return None, reason

    def _try(
        self,
        device_id: str,
        reading: Reading,
        way: Callable[[Any, Any], tuple[Any, ...]],
        handle: Any,
    ) -> tuple[tuple[Any, ...] | None, str, bool]:
        """What one call gave; else why not, and whether that may pass."""
        key = (device_id, way)
        if key in self._absent:
            return None, self._absent[key], False
        try:
            return way(self._nvml, handle), "", False
        except self._nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
            reason = nvml_library.REASONS.get(error.value)
            if reason is None:
                return None, str(error), True
            self._absent[key] = reason
            if error.value == nvml_library.NO_PERMISSION:
                logger.warning("%s of %s: %s", reading.names[0], device_id, reason)
            return None, reason, False
        except ReadingMissing as error:
            return None, str(error), True
        except Exception as error:  # the vendor-read border: it costs this reading, not all
            logger.warning("reading %s of %s failed", reading.names[0], device_id, exc_info=True)
            return None, f"{type(error).__name__}: {error}", True

    def _unified(self, target: Target, reason: str) -> tuple[Any, ...] | None:
        """The machine's memory, for an integrated GPU that has none of its own."""
        integrated = target.parent is None and target.device.memory_pool == HOST_POOL
        if not integrated or reason != nvml_library.REASONS[nvml_library.NOT_SUPPORTED]:
            return None
        memory = host.memory()
        return memory.total_bytes, memory.used_bytes, None


def _utilization(nvml: Any, handle: Any) -> tuple[Any, ...]:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return real(rates.gpu, most=100), real(rates.memory, most=100)


def _power_average(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return _field(nvml, handle, _POWER_AVERAGE) / 1000, _AVERAGE_SECONDS


def _power_instant(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return _field(nvml, handle, _POWER_INSTANT) / 1000, 0.0


def _power_usage(nvml: Any, handle: Any) -> tuple[Any, ...]:
    """nvml.h: an average over 1 s on Ampere and later except GA100; elsewhere it differs."""
    watts = real(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    try:
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError as error:
        if error.value in nvml_library.WHOLE:
            raise
        return watts, None
    return watts, _AVERAGE_SECONDS if capability > (8, 0) else None  # 8.0 is GA100


def _temperature(nvml: Any, handle: Any) -> tuple[Any, ...]:
    celsius = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
    return (real(celsius, most=_HOTTEST),)


def _temperature_v(nvml: Any, handle: Any) -> tuple[Any, ...]:
    celsius = nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)
    return (real(celsius, most=_HOTTEST),)


def _memory_temperature(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(_field(nvml, handle, _MEMORY_TEMPERATURE), most=_HOTTEST),)


def _clock(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), most=_NARROW),)


def _memory_clock(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM), most=_NARROW),)


def _power_limit(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1000,)


def _energy(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000,)


def _fan(nvml: Any, handle: Any) -> tuple[Any, ...]:
    """nvml.h: "may exceed 100 % in certain cases", which is full speed all the same."""
    return (min(100, real(nvml.nvmlDeviceGetFanSpeed(handle), most=_FASTEST_FAN_PERCENT)),)


def _reasons(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (named(real(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))),)


def _reasons_of_old_drivers(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (named(real(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),)


def _pcie_generation(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle), most=_NARROW),)


def _pcie_width(nvml: Any, handle: Any) -> tuple[Any, ...]:
    return (real(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle), most=_NARROW),)


def _errors(kind: int, counter: int) -> Callable[[Any, Any], tuple[Any, ...]]:
    """nvml.h: kind 0 is corrected, 1 uncorrected; counter 0 since the driver came, 1 for ever."""

    def read(nvml: Any, handle: Any) -> tuple[Any, ...]:
        return (real(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter)),)

    return read


def _field(nvml: Any, handle: Any, number: int) -> int:
    """One field value of the GPU itself; NVML gives each its own return code."""
    answer = nvml.nvmlDeviceGetFieldValues(handle, [(number, 0)])[0]
    if answer.nvmlReturn:
        raise nvml.NVMLError(answer.nvmlReturn)
    return real(answer.value.uiVal)


MEMORY = Reading(
    ("memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"),
    (nvml_library.memory, nvml_library.memory_of_old_drivers),
    whole=False,
)
READINGS = (
    MEMORY,
    Reading(
        ("compute_utilization_percent", "memory_utilization_percent"),
        (_utilization,),
        shared=True,
    ),
    Reading(
        ("power_watts", "power_window_seconds"),
        (_power_average, _power_instant, _power_usage),
        shared=True,
    ),
    Reading(("temperature_celsius",), (_temperature, _temperature_v)),
    Reading(("memory_temperature_celsius",), (_memory_temperature,)),
    Reading(("clock_rate_mhz",), (_clock,)),
    Reading(("memory_clock_mhz",), (_memory_clock,)),
    Reading(("power_limit_watts",), (_power_limit,), shared=True),
    Reading(("energy_joules",), (_energy,), shared=True),
    Reading(("fan_percent",), (_fan,)),
    Reading(("throttle_reasons",), (_reasons, _reasons_of_old_drivers)),
    # Since the driver was loaded; where only that is kept, since the GPU was made.
    Reading(("corrected_errors",), (_errors(0, 0), _errors(0, 1)), whole=False),
    Reading(("uncorrected_errors",), (_errors(1, 0), _errors(1, 1)), whole=False),
    Reading(("pcie_generation",), (_pcie_generation,)),
    Reading(("pcie_width",), (_pcie_width,)),
)

_HALF = {
    "memory_reserved_bytes": "not told apart from what is used",
    "power_window_seconds": "the driver does not tell what its figure is an average over",
}
