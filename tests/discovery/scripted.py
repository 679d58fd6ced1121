"""Backends whose search is a function of the test's, and services over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exo.gpu.backend import GPUBackend, MemoryHandle
from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.links import Link
from exo.gpu.vocabulary.metrics import GPUMetrics


class Scripted(GPUBackend):
    """Finds what the test's function gives."""

    def __init__(self, name: str, search: Callable[[], list[GPUDevice]]) -> None:
        super().__init__()
        self.name = name
        self.search = search

    def find(self) -> list[GPUDevice]:
        found = self.search()
        self._devices = {device.device_id: device for device in found}
        return found


class Reading(Scripted):
    """A backend with every ability; a reading tells by the power which card was read."""

    def read(self, device_id: str) -> GPUMetrics:
        device = self.require(device_id)
        if device.name == "Broken":
            raise BackendError(f"{device_id}: gone, unlike cuda:10")
        return GPUMetrics(device_id, 1.0, power_watts=float(device.name))

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        return {"PINNED": ",".join(device.device_id for device in devices)}

    def hiding(self) -> dict[str, str | None]:
        return {"HIDES_ALL": ""}

    def links(self) -> list[Link]:
        one, two = self._devices
        return [Link(source=one, target=two)]

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        return MemoryHandle(device_id=self.require(device_id).device_id, size_bytes=size_bytes)

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        raise BackendError(f"{dst_handle.device_id} refuses")


def device(device_id: str, **facts: Any) -> GPUDevice:
    facts.setdefault("name", "Card")
    return GPUDevice(
        device_id, facts.pop("name"), "Vendor", device_id.split(":", maxsplit=1)[0], **facts
    )


def service(*answers: tuple[str, Any], **options: Any) -> GPUDiscoveryService:
    """A service over backends that answer with devices, or raise, or call."""

    def search(answer: Any) -> Callable[[], list[GPUDevice]]:
        def run() -> list[GPUDevice]:
            if isinstance(answer, Exception):
                raise answer
            return answer() if callable(answer) else answer

        return run

    backends = {name: Scripted(name, search(answer)) for name, answer in answers}
    return GPUDiscoveryService(backends=backends, **options)
