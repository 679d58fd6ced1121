"""What an NVIDIA GPU is, and the MIG instances that stand in its place where it was cut up."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.backends import host, nvml_library
from exo.gpu.backends.nvml_readings import Target
from exo.gpu.backends.support import support_level
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import InvalidValue, ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exo.gpu.backends.nvml_session import NvmlSession

MIG = "MIG-"
"""How the UUID of a MIG instance begins; a whole GPU's begins with ``GPU-``."""

# nvml.h, nvmlTemperatureThresholds_t: where the GPU is switched off, where its hardware slows it
# down by force, and the highest at which it means to work, above which the driver slows it down.
_SHUTDOWN, _SLOWDOWN, _HIGHEST_IN_WORK = 0, 1, 3
# Degrees Celsius that no silicon survives.
_HOTTEST = 300

# GPUs that share the machine's memory, by NVIDIA's names: DGX Spark (GB10) and the Jetson family.
_INTEGRATED = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|Jetson)\b", re.IGNORECASE)


def listed(session: NvmlSession, failures: list[str]) -> Iterator[GPUDevice]:
    """Every GPU (``nvidia-smi -L``), or its MIG instances; what fails is said in ``failures``.

    Raises:
        BackendUnavailable: when NVML cannot even count.

    """
    nvml = session.nvml
    driver = session.fact(nvml.nvmlSystemGetDriverVersion)
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise nvml_library.unavailable(error) from error
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _is_cut(session, handle):
                yield from _instances(session, index, handle, driver, failures)
            else:
                yield _described(session, f"cuda:{index}", handle, driver)
        except (nvml.NVMLError, InvalidValue) as error:
            failures.append(f"GPU {index}: {error}")


def told_apart(devices: list[GPUDevice], failures: list[str]) -> list[GPUDevice]:
    """The devices with one identity each: those that share a UUID go by their PCI address."""
    times = Counter(device.hardware_id for device in devices)
    for uuid, count in times.items():
        if count > 1:
            failures.append(f"{count} GPUs have the UUID {uuid} and are told apart by PCI address")
    return [_by_address(device) if times[device.hardware_id] > 1 else device for device in devices]


def _by_address(device: GPUDevice) -> GPUDevice:
    identity = device.pci_address or device.device_id
    own_pool = device.memory_pool == device.hardware_id
    pool = identity if own_pool else device.memory_pool
    return msgspec.structs.replace(device, hardware_id=identity, memory_pool=pool)


def target(session: NvmlSession, device: GPUDevice) -> Target:
    """The handles to ask about a device.

    Raises:
        pynvml.NVMLError: when it is not there.

    """
    nvml = session.nvml
    uuid = device.hardware_id

    def find() -> Any:
        if uuid.startswith(("GPU-", MIG)):
            return nvml.nvmlDeviceGetHandleByUUID(uuid)
        return nvml.nvmlDeviceGetHandleByIndex(index_of(device))

    handle = session.handle(uuid, find)
    if not is_instance(device):
        return Target(device, handle)
    parent = session.handle(
        f"parent of {uuid}", lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    )
    return Target(device, handle, parent)


def asleep(device: GPUDevice, sysfs: Path) -> bool:
    """True when the kernel powered the GPU down, as in laptops; NVML would wake it."""
    if device.pci_address is None:
        return False
    # Read with every sample, so without the price of a Path and a text file.
    status = f"{sysfs}/bus/pci/devices/{device.pci_address}/power/runtime_status"
    try:
        descriptor = os.open(status, os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.read(descriptor, 64).strip() in {b"suspended", b"suspending"}
    except OSError:
        return False
    finally:
        os.close(descriptor)


def is_instance(device: GPUDevice) -> bool:
    """True for a MIG instance, which is a part of a GPU."""
    return device.hardware_id.startswith(MIG)


def index_of(device: GPUDevice) -> int:
    """NVML's index of the GPU, the first number of its label."""
    return int(device.device_id.split(":")[1])


def _is_cut(session: NvmlSession, handle: Any) -> bool:
    mode = session.fact(lambda: session.nvml.nvmlDeviceGetMigMode(handle))
    return bool(mode) and mode[0] == session.nvml.NVML_DEVICE_MIG_ENABLE


def _instances(
    session: NvmlSession, index: int, parent: Any, driver: str | None, failures: list[str]
) -> Iterator[GPUDevice]:
    nvml = session.nvml
    found = 0
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, place)
        except nvml.NVMLError as error:
            if error.value != nvml_library.NOT_FOUND:
                failures.append(f"GPU {index}, MIG instance {place}: {error}")
            continue
        found += 1
        yield _described(session, f"cuda:{index}:{place}", handle, driver, parent=parent)
    if not found:
        failures.append(f"GPU {index} is in MIG mode and has no instance: nvidia-smi mig -cgi")


def _described(
    session: NvmlSession, label: str, handle: Any, driver: str | None, *, parent: Any = None
) -> GPUDevice:
    nvml, fact = session.nvml, session.fact
    gpu = handle if parent is None else parent
    name = fact(lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU"
    integrated = parent is None and _INTEGRATED.search(name) is not None
    capability = fact(lambda: nvml.nvmlDeviceGetCudaComputeCapability(gpu))
    # A MIG instance keeps the address of its GPU to itself: it would pass for the whole card.
    pci = None if parent is not None else _address(session, gpu)
    total, free = _memory(session, handle, integrated=integrated)
    return GPUDevice(
        device_id=label,
        name=name,
        vendor="NVIDIA",
        backend="cuda",
        compute_capability=".".join(map(str, capability)) if capability else None,
        memory_bytes=total,
        memory_available=free,
        compute_units=_units(session, handle) if parent is not None else None,
        clock_rate_mhz=_highest_clock(session, gpu),
        support_level=support_level("cuda"),
        driver_version=driver,
        hardware_id=fact(lambda: nvml.nvmlDeviceGetUUID(handle)) or pci or "",
        pci_address=pci,
        memory_pool=HOST_POOL if integrated else "",
        drives_display=_drives_display(session, gpu),
        warn_celsius=_limit(session, gpu, _HIGHEST_IN_WORK, _SLOWDOWN),
        critical_celsius=_limit(session, gpu, _SLOWDOWN, _SHUTDOWN),
    )


def _limit(session: NvmlSession, handle: Any, *thresholds: int) -> float | None:
    """Degrees of the first threshold that the GPU states (``nvidia-smi -q -d TEMPERATURE``)."""
    nvml = session.nvml
    for threshold in thresholds:
        celsius = session.fact(
            lambda threshold=threshold: nvml_library.real(
                nvml.nvmlDeviceGetTemperatureThreshold(handle, threshold), most=_HOTTEST
            )
        )
        if celsius:
            return float(celsius)
    return None


def _memory(
    session: NvmlSession, handle: Any, *, integrated: bool
) -> tuple[int | None, int | None]:
    """Total and free bytes; of the machine where an integrated GPU has none of its own."""
    nvml = session.nvml
    refused = False
    for way in (nvml_library.memory, nvml_library.memory_of_old_drivers):
        try:
            total, used, reserved = way(nvml, handle)
        except ReadingMissing:
            continue
        except nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
            refused = error.value == nvml_library.NOT_SUPPORTED
            continue
        return total, max(0, total - used - (reserved or 0))
    if not (integrated and refused):
        return None, None
    memory = host.memory()
    return memory.total_bytes, memory.free_bytes


def _address(session: NvmlSession, handle: Any) -> str | None:
    return session.fact(lambda: nvml_library.pci_address(session.nvml.nvmlDeviceGetPciInfo(handle)))


def _drives_display(session: NvmlSession, handle: Any) -> bool | None:
    active = session.fact(lambda: session.nvml.nvmlDeviceGetDisplayActive(handle))
    return None if active is None else bool(active)


def _highest_clock(session: NvmlSession, handle: Any) -> int | None:
    nvml = session.nvml
    return session.fact(
        lambda: nvml_library.real(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
    )


def _units(session: NvmlSession, handle: Any) -> int | None:
    """Streaming multiprocessors of a MIG instance; NVML tells them of no whole GPU."""
    attributes = session.fact(lambda: session.nvml.nvmlDeviceGetAttributes_v2(handle))
    return attributes.multiprocessorCount if attributes else None
