"""NVML's library: how it is loaded, how its versions differ, and what its answers mean."""

from __future__ import annotations

import ctypes
from typing import Any

from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, DeviceLost, ReadingMissing

# NVML return codes (nvml.h, nvmlReturn_t).
UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 3, 4, 6
INSUFFICIENT_SIZE, TIMED_OUT = 7, 10
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 15, 16, 18

_ABSENT = {
    DRIVER_NOT_LOADED: ("the NVIDIA kernel driver is not loaded", "load it: modprobe nvidia"),
    LIBRARY_NOT_FOUND: (
        "the NVIDIA driver library libnvidia-ml.so.1 was not found",
        "install NVIDIA's driver, or its libraries into this container",
    ),
    VERSION_MISMATCH: (
        "the NVIDIA driver library and kernel module are of different versions",
        "reboot, or reload the nvidia kernel module",
    ),
}
REASONS = {
    NOT_SUPPORTED: "not supported by this GPU",
    NO_PERMISSION: "the driver denies it to this user",
    FUNCTION_NOT_FOUND: "this driver does not offer it",
}
# Errors that concern the whole device or library, never one reading alone.
WHOLE = {UNINITIALIZED, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH}
# Errors after which the library is opened anew: the driver was replaced underneath.
REOPEN = {UNINITIALIZED, VERSION_MISMATCH}

# Values that drivers leak in place of "unknown" (nvml.h NVML_VALUE_NOT_AVAILABLE; DCGM's blanks).
_SENTINELS = {0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
_BLANK_FROM = 0x7FFFFFFFFFFFFFF0


def load(nvml: Any, library: str | None) -> None:
    """Make pynvml use the library at a path; by itself it knows only a bare name.

    Raises:
        BackendUnavailable: when the library cannot be loaded.

    """
    loaded = getattr(nvml.nvmlLib, "_name", None)
    if library is None or library == loaded:
        return
    with nvml.libLoadLock:
        try:
            nvml.nvmlLib = ctypes.CDLL(library)
        except OSError as error:
            raise BackendUnavailable(f"the NVIDIA driver library {library}: {error}") from error
        nvml.__dict__["_nvmlGetFunctionPointer_cache"].clear()


def memory(nvml: Any, handle: Any) -> tuple[int, int, int | None]:
    """Total, used and reserved bytes."""
    try:
        now = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except TypeError:  # nvitop in the same process puts a call there that picks the version itself
        return memory_of_old_drivers(nvml, handle)
    total = real(now.total)
    return total, real(now.used, most=total), real(now.reserved)


def memory_of_old_drivers(nvml: Any, handle: Any) -> tuple[int, int, int | None]:
    """Total and used bytes; what is reserved counts as used, unless it is told apart."""
    now = nvml.nvmlDeviceGetMemoryInfo(handle)
    total = real(now.total)
    reserved = real(now.reserved) if hasattr(now, "reserved") else None
    return total, real(now.used, most=total), reserved


def unavailable(error: Any) -> BackendUnavailable:
    """What an error of opening NVML means for the whole backend."""
    return BackendUnavailable(*_ABSENT.get(error.value, (f"NVML: {error}", "")))


def failure(device_id: str, error: Any) -> BackendError:
    """What an error that concerns a whole GPU means."""
    kind = DeviceLost if error.value in {GPU_IS_LOST, RESET_REQUIRED} else BackendError
    return kind(f"{device_id}: {error}")


def pci_address(pci: Any) -> str:
    """NVML's place on the bus in the form of sysfs: ``0000:01:00.0``."""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def real(value: int, *, most: int = _BLANK_FROM - 1) -> int:
    """A number that a device can mean.

    Raises:
        ReadingMissing: for one of the values that drivers leak in place of "unknown".

    """
    if value in _SENTINELS or not 0 <= value <= most:
        raise ReadingMissing(f"the driver gave {value:#x}, which is no reading")
    return value
