"""Vulkan drivers asked in a child process, and what they say as devices of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from exo.gpu.backends import host
from exo.gpu.backends.support import support_level
from exo.gpu.backends.webgpu import AdapterKey
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A driver that has not listed its devices by then is given up; software drivers need 0.3 s.
DRIVER_SECONDS = 5.0
# The child's own start, on top: a Python interpreter and the vulkan package.
START_SECONDS = 5.0

_LISTING = Path(__file__).with_name("vulkan_listing.py")

# VkPhysicalDeviceType.
_INTEGRATED, _SOFTWARE = 1, 4
# The PCI SIG's vendor numbers; from 0x10000 on, Khronos's.
_VENDORS = {
    0x1002: "AMD",
    0x106B: "Apple",
    0x10DE: "NVIDIA",
    0x13B5: "Arm",
    0x1AE0: "Google",
    0x5143: "Qualcomm",
    0x8086: "Intel",
    0x10005: "Mesa",
}
_HINTS = {
    "package": "pip install 'exo-gpu[vulkan]'",
    "loader": "install the Vulkan loader, such as Debian's libvulkan1",
}


def ask(
    manifests: list[str], environ: Mapping[str, str], *, driver_seconds: float
) -> list[dict[str, Any]]:
    """What the listing child says of every manifest.

    Raises:
        BackendUnavailable: when the loader or the Python package is missing.
        BackendError: when the child itself broke or hung.

    """
    command = [sys.executable, "-P", str(_LISTING), str(driver_seconds), *manifests]
    child = subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=driver_seconds + START_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BackendError("the process that lists Vulkan drivers hangs") from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    try:
        answer = msgspec.json.decode(output)
    except ValueError as error:
        raise BackendError(
            f"the process that lists Vulkan drivers ended with status {child.returncode}"
        ) from error
    if "missing" in answer:
        reason = answer["reason"]
        raise BackendUnavailable(reason, _HINTS[answer["missing"]])
    return answer["drivers"]


class MemoryHeap(NamedTuple):
    """One memory of a device, as its driver lists it.

    ``budget_bytes`` (VK_EXT_memory_budget) is what the driver then thought that one process
    could have of it: an estimate for the asker alone, not what is free. None: not told.
    """

    size_bytes: int
    device_local: bool
    budget_bytes: int | None = None


class Listed(NamedTuple):
    """A device, how to find it among wgpu's adapters, and its memories."""

    device: GPUDevice
    key: AdapterKey
    heaps: tuple[MemoryHeap, ...] = ()


def distinct(drivers: Sequence[dict[str, Any]]) -> list[Listed]:
    """Each device once: a library with two manifests, or a card with two drivers, counts once."""
    libraries: set[str] = set()
    cards: set[str] = set()
    found: list[Listed] = []
    for driver in drivers:
        library = driver.get("library", driver["manifest"])
        if library in libraries:
            continue
        libraries.add(library)
        names: set[str] = set()
        for index, facts in enumerate(driver.get("devices", ())):
            device = _device(driver["manifest"], index, facts)
            if device.hardware_id in names:  # one driver's devices differ, whatever it says
                identity = f"{device.hardware_id}#{index}"
                device = msgspec.structs.replace(device, hardware_id=identity)
            names |= {device.hardware_id, device.pci_address or device.hardware_id}
            if not {device.hardware_id, device.pci_address} & cards:
                key = AdapterKey(facts["vendor_id"], facts["device_id"], facts["name"])
                heaps = tuple(MemoryHeap(**heap) for heap in facts.get("heaps", ()))
                found.append(Listed(device, key, heaps))
        cards |= names
    return found


def _device(manifest: str, index: int, facts: dict[str, Any]) -> GPUDevice:
    software = facts["kind"] == _SOFTWARE
    memory = host.memory() if software else None
    major, minor = facts["api_version"] >> 22 & 0x7F, facts["api_version"] >> 12 & 0x3FF
    return GPUDevice(
        device_id=f"vulkan:{index}",
        name=facts["name"],
        vendor=_VENDORS.get(facts["vendor_id"], f"PCI vendor {facts['vendor_id']:04x}"),
        backend="vulkan",
        compute_capability=f"Vulkan {major}.{minor}",
        memory_bytes=memory.total_bytes if memory else facts["device_local_bytes"] or None,
        memory_available=memory.free_bytes if memory else None,
        max_threads_per_block=facts["max_threads_per_block"],
        support_level=support_level("vulkan"),
        driver_version=facts.get("driver") or str(facts["driver_version"]),
        device_class=DeviceClass.SOFTWARE if software else DeviceClass.HARDWARE,
        hardware_id=_identity(manifest, facts),
        pci_address=facts.get("pci_address"),
        memory_pool=HOST_POOL if facts["kind"] in {_INTEGRATED, _SOFTWARE} else "",
        driver_manifest=manifest,
        driver_index=index,
    )


def _identity(manifest: str, facts: dict[str, Any]) -> str:
    """UUID, else PCI address; software drivers have versions for UUIDs, which identify nothing."""
    uuid = facts.get("uuid", "")
    if facts["kind"] != _SOFTWARE and uuid.strip("0-"):
        return f"GPU-{uuid}" if _VENDORS.get(facts["vendor_id"]) == "NVIDIA" else uuid
    if facts.get("pci_address"):
        return facts["pci_address"]
    return f"{manifest}:{facts['name']}"
