"""The calls that give an NVIDIA GPU's readings: which, in which unit, and what to ask instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from exo.gpu.backends import nvml_library
from exo.gpu.backends.nvml_library import real
from exo.gpu.backends.nvml_throttling import named

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exo.gpu.vocabulary.device import GPUDevice

# nvml.h: NVML_FI_DEV_MEMORY_TEMP, NVML_FI_DEV_POWER_AVERAGE (over 1 s; Ampere and later except
# GA100), NVML_FI_DEV_POWER_INSTANT. Asked with scope 0, the GPU: on Grace Hopper scope 1 is the
# whole module.
_MEMORY_TEMPERATURE, _POWER_AVERAGE, _POWER_INSTANT = 82, 185, 186
_AVERAGE_SECONDS = 1.0

# 0xFFFF stands for "unknown" where a figure is known to be narrow: MHz, lanes, generations.
_NARROW = 0xFFFE
# Far above what a fan can be overdriven, far below the sentinels.
_FASTEST_FAN_PERCENT = 250
# nvml.h: P0 is the fastest state, P15 the slowest; 32 stands for "unknown".
_SLOWEST_STATE = 15
# Degrees Celsius that no silicon survives.
_HOTTEST = 300


class Question:
    """One asking of one handle. NVML's field values come together, in one call.

    ``numbers`` are the field values that will be wanted.
    """

    __slots__ = ("_answers", "_numbers", "device", "handle", "nvml")

    def __init__(
        self, nvml: Any, device: GPUDevice, handle: Any, numbers: Sequence[int] = ()
    ) -> None:
        self.nvml = nvml
        self.device = device
        self.handle = handle
        self._numbers = numbers
        self._answers: dict[int, Any] = {}

    def field(self, number: int) -> int:
        """One field value of the GPU itself; NVML gives each its own return code.

        Raises:
            pynvml.NVMLError: when the driver does not give it.
            ReadingMissing: when what it gave is no number that a device can mean.

        """
        if number not in self._answers:
            numbers = self._numbers if number in self._numbers else (number,)
            asked = [(wanted, 0) for wanted in numbers]
            found = self.nvml.nvmlDeviceGetFieldValues(self.handle, asked)
            self._answers.update(zip(numbers, found, strict=True))
        answer = self._answers[number]
        if answer.nvmlReturn:
            raise self.nvml.NVMLError(answer.nvmlReturn)
        return real(answer.value.uiVal)


Way: TypeAlias = "Callable[[Question], tuple[Any, ...]]"


class Reading(NamedTuple):
    """Fields of a sample that come together, and the calls that give them, best first.

    ``whole`` says that the figure is the whole GPU's: then a MIG instance asks its parent, or
    has no such reading where the figure is a sum over all instances (``shared``). ``dear`` says
    that it costs more than it changes, so that a sampler asks for it seldom: settings, and what
    the driver fetches over a slow bus.
    """

    names: tuple[str, ...]
    ways: tuple[Way, ...]
    whole: bool = True
    shared: bool = False
    dear: bool = False


def _memory(ask: Question) -> tuple[Any, ...]:
    return nvml_library.memory(ask.nvml, ask.handle)


def _memory_of_old_drivers(ask: Question) -> tuple[Any, ...]:
    return nvml_library.memory_of_old_drivers(ask.nvml, ask.handle)


def _utilization(ask: Question) -> tuple[Any, ...]:
    rates = ask.nvml.nvmlDeviceGetUtilizationRates(ask.handle)
    return real(rates.gpu, most=100), real(rates.memory, most=100)


def _power_average(ask: Question) -> tuple[Any, ...]:
    return ask.field(_POWER_AVERAGE) / 1000, _AVERAGE_SECONDS


def _power_instant(ask: Question) -> tuple[Any, ...]:
    return ask.field(_POWER_INSTANT) / 1000, 0.0


def _power_usage(ask: Question) -> tuple[Any, ...]:
    """nvml.h: an average over 1 s on Ampere and later except GA100; elsewhere it differs."""
    watts = real(ask.nvml.nvmlDeviceGetPowerUsage(ask.handle)) / 1000
    capability = tuple(map(int, (ask.device.compute_capability or "0").split(".")))
    return watts, _AVERAGE_SECONDS if capability > (8, 0) else None  # 8.0 is GA100


def _temperature(ask: Question) -> tuple[Any, ...]:
    celsius = ask.nvml.nvmlDeviceGetTemperature(ask.handle, ask.nvml.NVML_TEMPERATURE_GPU)
    return (real(celsius, most=_HOTTEST),)


def _temperature_v(ask: Question) -> tuple[Any, ...]:
    celsius = ask.nvml.nvmlDeviceGetTemperatureV(ask.handle, ask.nvml.NVML_TEMPERATURE_GPU)
    return (real(celsius, most=_HOTTEST),)


def _memory_temperature(ask: Question) -> tuple[Any, ...]:
    return (real(ask.field(_MEMORY_TEMPERATURE), most=_HOTTEST),)


def _clock(ask: Question) -> tuple[Any, ...]:
    return (
        real(ask.nvml.nvmlDeviceGetClockInfo(ask.handle, ask.nvml.NVML_CLOCK_SM), most=_NARROW),
    )


def _memory_clock(ask: Question) -> tuple[Any, ...]:
    return (
        real(ask.nvml.nvmlDeviceGetClockInfo(ask.handle, ask.nvml.NVML_CLOCK_MEM), most=_NARROW),
    )


def _power_limit(ask: Question) -> tuple[Any, ...]:
    return (real(ask.nvml.nvmlDeviceGetEnforcedPowerLimit(ask.handle)) / 1000,)


def _energy(ask: Question) -> tuple[Any, ...]:
    return (real(ask.nvml.nvmlDeviceGetTotalEnergyConsumption(ask.handle)) / 1000,)


def _fan(ask: Question) -> tuple[Any, ...]:
    """nvml.h: "may exceed 100 % in certain cases", which is full speed all the same."""
    return (min(100, real(ask.nvml.nvmlDeviceGetFanSpeed(ask.handle), most=_FASTEST_FAN_PERCENT)),)


def _reasons(ask: Question) -> tuple[Any, ...]:
    return (named(real(ask.nvml.nvmlDeviceGetCurrentClocksEventReasons(ask.handle))),)


def _reasons_of_old_drivers(ask: Question) -> tuple[Any, ...]:
    return (named(real(ask.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(ask.handle))),)


def _pcie_generation(ask: Question) -> tuple[Any, ...]:
    return (real(ask.nvml.nvmlDeviceGetCurrPcieLinkGeneration(ask.handle), most=_NARROW),)


def _pcie_width(ask: Question) -> tuple[Any, ...]:
    return (real(ask.nvml.nvmlDeviceGetCurrPcieLinkWidth(ask.handle), most=_NARROW),)


def _errors(kind: int, counter: int) -> Way:
    """nvml.h: kind 0 is corrected, 1 uncorrected; counter 0 since the driver came, 1 for ever."""

    def read(ask: Question) -> tuple[Any, ...]:
        return (real(ask.nvml.nvmlDeviceGetTotalEccErrors(ask.handle, kind, counter)),)

    return read


def _encoder(ask: Question) -> tuple[Any, ...]:
    share, _window = ask.nvml.nvmlDeviceGetEncoderUtilization(ask.handle)
    return (real(share, most=100),)


def _decoder(ask: Question) -> tuple[Any, ...]:
    share, _window = ask.nvml.nvmlDeviceGetDecoderUtilization(ask.handle)
    return (real(share, most=100),)


def _performance_state(ask: Question) -> tuple[Any, ...]:
    return (real(ask.nvml.nvmlDeviceGetPerformanceState(ask.handle), most=_SLOWEST_STATE),)


MEMORY = Reading(
    ("memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"),
    (_memory, _memory_of_old_drivers),
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
    Reading(("power_limit_watts",), (_power_limit,), shared=True, dear=True),
    Reading(("energy_joules",), (_energy,), shared=True),
    Reading(("fan_percent",), (_fan,), dear=True),
    Reading(("throttle_reasons",), (_reasons, _reasons_of_old_drivers)),
    # Since the driver was loaded; where only that is kept, since the GPU was made.
    Reading(("corrected_errors",), (_errors(0, 0), _errors(0, 1)), whole=False, dear=True),
    Reading(("uncorrected_errors",), (_errors(1, 0), _errors(1, 1)), whole=False, dear=True),
    Reading(("pcie_generation",), (_pcie_generation,), dear=True),
    Reading(("pcie_width",), (_pcie_width,), dear=True),
    Reading(("encoder_percent",), (_encoder,), shared=True),
    Reading(("decoder_percent",), (_decoder,), shared=True),
    Reading(("performance_state",), (_performance_state,)),
)
QUICK = tuple(reading for reading in READINGS if not reading.dear)
DEAR_NAMES = tuple(name for reading in READINGS if reading.dear for name in reading.names)
FIELDS: dict[Way, int] = {
    _power_average: _POWER_AVERAGE,
    _power_instant: _POWER_INSTANT,
    _memory_temperature: _MEMORY_TEMPERATURE,
}
"""The ways that are field values, with the number of each."""
FIELD_READINGS = tuple(
    reading for reading in READINGS if any(way in FIELDS for way in reading.ways)
)
