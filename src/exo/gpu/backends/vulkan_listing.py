"""In a child: lists the devices of Vulkan drivers, each driver in a process of its own.

Run by path, ``python -P vulkan_listing.py SECONDS MANIFEST...``; writes one JSON object to its
standard output. A driver that crashes or hangs ends its own process only. Of other packages it
needs ``vulkan`` alone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

# Instance extensions that the calls below need where the instance is of Vulkan 1.0.
_EXTENSIONS = (
    "VK_KHR_get_physical_device_properties2",
    "VK_KHR_external_memory_capabilities",
)


def main(arguments: list[str]) -> int:
    """List the manifests' devices on the real standard output; drivers print elsewhere."""
    output = os.dup(1)
    os.dup2(2, 1)
    seconds, manifests = float(arguments[0]), arguments[1:]
    try:
        import vulkan
    except ImportError as error:
        answer: dict[str, Any] = {"missing": "package", "reason": str(error)}
    except OSError as error:  # what the package raises without a loader
        answer = {"missing": "loader", "reason": str(error)}
    else:
        answer = {"drivers": _list_all(vulkan, manifests, seconds)}
    with os.fdopen(output, "w") as stream:
        json.dump(answer, stream)
    return 0


def _list_all(vulkan: Any, manifests: list[str], seconds: float) -> list[dict[str, Any]]:
    """One process per manifest, all at once; those still running at the end are killed."""
    ends = time.monotonic() + seconds
    running: dict[str, tuple[int, int]] = {}
    for manifest in manifests:
        read_end, write_end = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(read_end)
            _report(vulkan, manifest, write_end)
        os.close(write_end)
        running[manifest] = (process, read_end)
    return [
        {"manifest": manifest, **_answer(process, pipe, ends, seconds)}
        for manifest, (process, pipe) in running.items()
    ]


def _answer(process: int, pipe: int, ends: float, seconds: float) -> dict[str, Any]:
    chunks: list[bytes] = []
    hangs = False
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            hangs = True
            os.kill(process, signal.SIGKILL)
            break
        chunk = os.read(pipe, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(pipe)
    _, status = os.waitpid(process, 0)
    if hangs:
        return {"reason": f"gave no answer within {seconds:g} s"}
    if os.WIFSIGNALED(status):
        return {"reason": f"died of {signal.Signals(os.WTERMSIG(status)).name}"}
    return json.loads(b"".join(chunks))


def _report(vulkan: Any, manifest: str, pipe: int) -> None:
    """Write what one driver lists, and end this process without any clean-up of the driver's."""
    try:
        os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = manifest
        os.environ.pop("VK_ADD_DRIVER_FILES", None)
        # Mesa's layer for choosing the first device would put another order on them.
        os.environ["NODEVICE_SELECT"] = "1"
        answer = _list_driver(vulkan, manifest)
    except Exception as error:  # noqa: BLE001 - the vendor-read border: told by the parent
        answer = {"reason": f"{type(error).__name__}: {error}"}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def _list_driver(vulkan: Any, manifest: str) -> dict[str, Any]:
    named: str = json.loads(Path(manifest).read_text())["ICD"]["library_path"]
    offered = {
        extension.extensionName for extension in vulkan.vkEnumerateInstanceExtensionProperties(None)
    }
    wanted = [name for name in _EXTENSIONS if name in offered]
    application = vulkan.VkApplicationInfo(
        pApplicationName="exo-gpu", apiVersion=vulkan.VK_MAKE_VERSION(1, 1, 0)
    )
    try:
        instance = vulkan.vkCreateInstance(
            vulkan.VkInstanceCreateInfo(
                pApplicationInfo=application,
                enabledExtensionCount=len(wanted),
                ppEnabledExtensionNames=wanted,
            ),
            None,
        )
    except vulkan.VkErrorIncompatibleDriver:  # no library, or no device of its vendor
        return {"devices": []}
    # Both come with the first extension.
    properties2, memory2 = (
        vulkan.vkGetInstanceProcAddr(instance, f"vkGetPhysicalDevice{name}Properties2KHR")
        if _EXTENSIONS[0] in wanted
        else None
        for name in ("", "Memory")
    )
    try:
        handles: list[Any] = vulkan.vkEnumeratePhysicalDevices(instance)
    except vulkan.VkErrorInitializationFailed:  # a driver without a device
        handles = []
    devices = [_describe(vulkan, handle, properties2, memory2) for handle in handles]
    return {"devices": devices, "library": _loaded_library(named)}


def _describe(vulkan: Any, handle: Any, properties2: Any, memory2: Any) -> dict[str, Any]:
    plain = vulkan.vkGetPhysicalDeviceProperties(handle)
    offered = {
        extension.extensionName
        for extension in vulkan.vkEnumerateDeviceExtensionProperties(handle, None)
    }
    heaps = _heaps(vulkan, handle, memory2 if "VK_EXT_memory_budget" in offered else None)
    facts: dict[str, Any] = {
        "name": plain.deviceName,
        "kind": plain.deviceType,
        "vendor_id": plain.vendorID,
        "device_id": plain.deviceID,
        "api_version": plain.apiVersion,
        "driver_version": plain.driverVersion,
        "device_local_bytes": sum(heap["size_bytes"] for heap in heaps if heap["device_local"]),
        "heaps": heaps,
        "max_threads_per_block": plain.limits.maxComputeWorkGroupInvocations,
    }
    if properties2 is not None:
        facts.update(_identity(vulkan, handle, properties2, offered))
    return facts


def _heaps(vulkan: Any, handle: Any, memory2: Any) -> list[dict[str, Any]]:
    """Each heap's size and kind; with ``memory2`` also what the driver grants this process."""
    memory = vulkan.vkGetPhysicalDeviceMemoryProperties(handle)
    local = vulkan.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    heaps: list[dict[str, Any]] = [
        {"size_bytes": heap.size, "device_local": bool(heap.flags & local)}
        for heap in (memory.memoryHeaps[place] for place in range(memory.memoryHeapCount))
    ]
    if memory2 is not None:
        budget = vulkan.VkPhysicalDeviceMemoryBudgetPropertiesEXT()
        memory2(handle, vulkan.VkPhysicalDeviceMemoryProperties2(pNext=budget))
        for place, heap in enumerate(heaps):
            heap["budget_bytes"] = budget.heapBudget[place]
    return heaps


def _identity(vulkan: Any, handle: Any, properties2: Any, offered: set[str]) -> dict[str, Any]:
    """UUID, place on the PCI bus and the driver's own words about itself, where it tells."""
    ids = vulkan.VkPhysicalDeviceIDProperties()
    chain, bus, driver = ids, None, None
    if "VK_EXT_pci_bus_info" in offered:
        chain = bus = vulkan.VkPhysicalDevicePCIBusInfoPropertiesEXT(pNext=chain)
    if "VK_KHR_driver_properties" in offered:
        chain = driver = vulkan.VkPhysicalDeviceDriverProperties(pNext=chain)
    properties2(handle, vulkan.VkPhysicalDeviceProperties2(pNext=chain))
    facts: dict[str, Any] = {"uuid": str(uuid.UUID(bytes=bytes(vulkan.ffi.buffer(ids.deviceUUID))))}
    if bus is not None:
        place = (bus.pciDomain, bus.pciBus, bus.pciDevice, bus.pciFunction)
        facts["pci_address"] = "{:04x}:{:02x}:{:02x}.{:x}".format(*place)
    if driver is not None:
        texts = (driver.driverName, driver.driverInfo)
        facts["driver"] = " ".join(vulkan.ffi.string(text).decode() for text in texts).strip()
    return facts


def _loaded_library(named: str) -> str:
    """Real path of the manifest's library as it was loaded, else as the manifest names it."""
    try:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    except OSError:  # only Linux has this file
        return named
    matches = [path for path in mapped if Path(path).name == Path(named).resolve().name]
    matches = matches or [path for path in mapped if Path(path).name == Path(named).name]
    return str(Path(matches[0]).resolve()) if matches else named


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
