"""Any Vulkan device, software drivers included: found by a child process, used through wgpu."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from exo.gpu.backends import (
    host,
    pci,
    vulkan_answers,
    vulkan_drivers,
    vulkan_manifests,
    vulkan_selection,
)
from exo.gpu.backends.webgpu import AdapterKey, WebGPUDevice
from exo.gpu.backends.webgpu_buffers import WebGPUBuffers
from exo.gpu.backends.webgpu_speed import WebGPUSpeed
from exo.gpu.vocabulary.device import DeviceClass, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INDEX_VARIABLE = "EXO_GPU_VULKAN_INDEX"
"""Place of the one visible device among those of the one visible driver."""


class VulkanGPUBackend(WebGPUBuffers):
    """Every device of every Vulkan driver that the loader would find here.

    ``sysfs`` is where the PCI bus is looked at.
    """

    name = "vulkan"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        driver_seconds: float = vulkan_drivers.DRIVER_SECONDS,
        sysfs: Path = pci.SYSFS,
    ) -> None:
        super().__init__()
        self._sysfs = sysfs
        self._environ = environ
        self._driver_seconds = driver_seconds
        self.answers: dict[str, str] | None = None
        """What the drivers said before, kept by whoever sets it; None: nothing is kept."""
        self._keys: dict[str, tuple[AdapterKey, int]] = {}
        self._heaps: dict[str, tuple[vulkan_drivers.MemoryHeap, ...]] = {}

    def find(self) -> list[GPUDevice]:
        """The devices of all drivers (``vulkaninfo --summary``), each once."""
        environ = os.environ if self._environ is None else self._environ
        manifests = vulkan_manifests.universe(environ)
        if not manifests:
            raise BackendUnavailable(
                "no Vulkan driver manifest was found",
                "install a driver, such as Debian's mesa-vulkan-drivers",
            )
        drivers = vulkan_answers.recall_or_ask(
            self.answers,
            manifests,
            environ,
            lambda: vulkan_drivers.ask(manifests, environ, driver_seconds=self._driver_seconds),
        )
        self.remark = "; ".join(
            f"{driver['manifest']} {driver['reason']}" for driver in drivers if "reason" in driver
        )
        known: dict[str, tuple[AdapterKey, int]] = {}
        memories: dict[str, tuple[vulkan_drivers.MemoryHeap, ...]] = {}
        only = environ.get(INDEX_VARIABLE, "")
        model = vulkan_selection.forced(environ)
        keys: list[AdapterKey] = []
        found: list[GPUDevice] = []
        for device, key, heaps in vulkan_drivers.distinct(drivers):
            rank = keys.count(key)
            keys.append(key)
            if only.isdigit() and len(manifests) == 1 and device.driver_index != int(only):
                continue
            if model is not None and model != key[:2]:
                continue
            device_id = f"vulkan:{len(found)}"
            known[device_id] = (key, rank)
            memories[device_id] = heaps
            found.append(msgspec.structs.replace(device, device_id=device_id))
        self._keys, self._heaps = known, memories  # whole, since others may use them meanwhile
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """Memory where it is the machine's; Vulkan itself tells nothing of the present."""
        device = self.require(device_id)
        missing = dict.fromkeys(READINGS, "Vulkan does not tell it")
        total, used = self._room(device)
        if total is not None:
            del missing["memory_total_bytes"]
        if used is None:
            missing["memory_used_bytes"] = "Vulkan tells the memory use of this process only"
        else:
            del missing["memory_used_bytes"]
        return GPUMetrics(
            device_id,
            time.time(),
            memory_used_bytes=used,
            memory_total_bytes=total,
            missing_reasons=missing,
        )

    def heaps(self, device_id: str) -> tuple[vulkan_drivers.MemoryHeap, ...]:
        """The memories of a device (``vulkaninfo``), each with one process's budget where told."""
        self.require(device_id)
        return self._heaps[device_id]

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """The device's driver alone, and its place among that driver's devices.

        ggml's programs get that place in a list of their own; others see all devices of the one
        driver.

        Raises:
            BackendError: when the environment excludes the driver or the model, none is known, or
                several devices are asked for, which no variable of Vulkan's can name.

        """
        if len(devices) > 1:
            names = ", ".join(device.device_id for device in devices)
            raise BackendError(f"Vulkan has no variable that names several devices ({names})")
        device = devices[0]
        if device.driver_manifest is None or device.driver_index is None:
            raise BackendError(f"{device.device_id} has no Vulkan driver manifest")
        named = vulkan_manifests.restriction(inherited)
        if named is not None and device.driver_manifest not in named:
            raise BackendError(
                f"{device.device_id} is hidden: {device.driver_manifest} is not among the "
                f"drivers named in {' or '.join(vulkan_manifests.LISTS)}"
            )
        self._check_model(device, inherited)
        return {
            **_drivers(device.driver_manifest),
            INDEX_VARIABLE: str(device.driver_index),
            **vulkan_selection.selecting(device.driver_index),
        }

    def _check_model(self, device: GPUDevice, inherited: Mapping[str, str]) -> None:
        model = vulkan_selection.forced(inherited)
        known = self._keys.get(device.device_id)
        if model is not None and known is not None and known[0][:2] != model:
            named = inherited[vulkan_selection.MESA]
            raise BackendError(
                f"{device.device_id} is hidden: {vulkan_selection.MESA}={named!r} leaves another"
            )

    def hiding(self) -> dict[str, str | None]:
        """A manifest that names no driver; the loader then finds none and says so."""
        return {**_drivers(vulkan_manifests.NOTHING), **vulkan_selection.NOTHING}

    def speed(self, device: GPUDevice) -> WebGPUSpeed:
        """What can be timed on a device; for the process that measures, pinned to it.

        There the drivers are not listed again: the device is known by its place among those of
        the one visible driver, and by its PCI ids where that leaves a doubt, else by its name. A
        card of another backend is measured here too, under the Vulkan driver that lists it.

        Raises:
            BackendError: when it cannot be told which adapter it is, or it does not open.

        """
        if device.device_id in self._keys:
            opened = self._adapter(device)
        else:
            opened = WebGPUDevice(device.driver_index or 0)
            if opened.choices > 1 and not self._agrees(opened, device):
                opened.close()
                raise BackendError(f"{device.name} is not surely the adapter {opened.name}")
        total, used = self._room(device)
        free = None if total is None else total - (used or 0)
        software = device.device_class is DeviceClass.SOFTWARE
        return WebGPUSpeed(opened, free_bytes=free, software=software)

    def _agrees(self, opened: WebGPUDevice, device: GPUDevice) -> bool:
        """Whether an adapter can be the device; other backends have names of their own for it."""
        ids = pci.ids(device.pci_address, self._sysfs)
        return opened.name == device.name if ids is None else opened.ids == ids

    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        key, rank = self._keys[device.device_id]
        return self._once(device.hardware_id, lambda: WebGPUDevice(rank, key=key))

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        if device.device_class is DeviceClass.SOFTWARE:
            memory = host.memory()
            return memory.total_bytes, memory.used_bytes
        return device.memory_bytes, None


def _drivers(manifest: str) -> dict[str, str | None]:
    return {**dict.fromkeys(vulkan_manifests.LISTS, manifest), vulkan_manifests.ADDED: None}
