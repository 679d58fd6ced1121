"""What NVML answers on a machine, a line for each question; for captures that become fixtures.

``0.power=123456`` is the first GPU's power in NVML's own unit, ``0.fan=!3`` an answer that is
NVML's error 3, and ``0.mig.1.name`` the name of a MIG instance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.backends import nvml_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Questions = Mapping[str, Callable[[], object]]

# nvml.h: field values of the GPU itself.
_FIELDS = {"temperature.memory": 82, "power.average": 185, "power.instant": 186}
_COUNTERS = {"volatile": 0, "aggregate": 1}
_KINDS = {"corrected": 0, "uncorrected": 1}


def capture(nvml: Any) -> str:
    """All that is asked of every GPU and its MIG instances; nothing that an answer can break."""
    lines = list(_lines("", {"driver": nvml.nvmlSystemGetDriverVersion}, nvml))
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return "\n".join([*lines, f"count=!{error.value}", ""])
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            lines.append(f"{index}.handle=!{error.value}")
            continue
        lines += _lines(f"{index}.", _of_device(nvml, handle) | _of_gpu(nvml, handle), nvml)
        for place, instance in _instances(nvml, handle):
            lines += _lines(f"{index}.mig.{place}.", _of_device(nvml, instance), nvml)
    return "\n".join([*lines, ""])


def _lines(prefix: str, questions: Questions, nvml: Any) -> Iterator[str]:
    for name, ask in questions.items():
        try:
            yield f"{prefix}{name}={ask()}"
        except nvml.NVMLError as error:
            yield f"{prefix}{name}=!{error.value}"


def _instances(nvml: Any, handle: Any) -> Iterator[tuple[int, Any]]:
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return
        places = range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except nvml.NVMLError:  # a GPU that cannot be cut
        return
    for place in places:
        try:
            yield place, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError:  # no instance there
            continue


def _of_device(nvml: Any, handle: Any) -> dict[str, Callable[[], object]]:
    """What a MIG instance is asked as well as a whole GPU."""

    def memory(name: str) -> Callable[[], object]:
        version = nvml.nvmlMemory_v2
        return lambda: getattr(nvml.nvmlDeviceGetMemoryInfo(handle, version=version), name)

    def errors(kind: int, counter: int) -> Callable[[], object]:
        return lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter)

    return {
        "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "units": lambda: nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount,
        **{f"memory.{name}": memory(name) for name in ("total", "used", "reserved")},
        **{
            f"ecc.{span}.{kind}": errors(number, counter)
            for span, counter in _COUNTERS.items()
            for kind, number in _KINDS.items()
        },
    }


def _of_gpu(nvml: Any, handle: Any) -> dict[str, Callable[[], object]]:
    def clock(kind: int) -> Callable[[], object]:
        return lambda: nvml.nvmlDeviceGetClockInfo(handle, kind)

    return {
        "pci": lambda: nvml_library.pci_address(nvml.nvmlDeviceGetPciInfo(handle)),
        "mig": lambda: nvml.nvmlDeviceGetMigMode(handle)[0],
        "capability": lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "utilization.memory": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).memory,
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        "power.limit": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "energy": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "fan": lambda: nvml.nvmlDeviceGetFanSpeed(handle),
        "clock": clock(nvml.NVML_CLOCK_SM),
        "clock.memory": clock(nvml.NVML_CLOCK_MEM),
        "encoder": lambda: nvml.nvmlDeviceGetEncoderUtilization(handle)[0],
        "decoder": lambda: nvml.nvmlDeviceGetDecoderUtilization(handle)[0],
        "state": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
        "clock.max": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "throttle": lambda: hex(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        "pcie.generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "pcie.width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        **{name: _field(nvml, handle, number) for name, number in _FIELDS.items()},
    }


def _field(nvml: Any, handle: Any, number: int) -> Callable[[], object]:
    def ask() -> object:
        (answer,) = nvml.nvmlDeviceGetFieldValues(handle, [(number, 0)])
        if answer.nvmlReturn:
            raise nvml.NVMLError(answer.nvmlReturn)
        return answer.value.uiVal

    return ask
