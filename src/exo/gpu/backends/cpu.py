"""The host's CPU as a device: always there, with real memory and the load of the machine."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.backends import host
from exo.gpu.backends.host_buffers import HostBufferBackend
from exo.gpu.backends.host_load import HostLoad
from exo.gpu.backends.support import support_level
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass, GPUDevice
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.backends.cpu_speed import NumPySpeed

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "Apple": "Apple"}


class CPUBackend(HostBufferBackend):
    """The processor that this program runs on. ``root`` is where ``proc`` and ``sys`` lie."""

    name = "cpu"

    def __init__(self, *, root: Path = Path("/")) -> None:
        super().__init__()
        self._root = root
        self._load = HostLoad(root)

    def find(self) -> list[GPUDevice]:
        """One device with as many slots as this process may use cores (``nproc``)."""
        memory = host.memory(self._root)
        facts = self._cpuinfo()
        vendor = facts.get("vendor_id", "")
        cores = host.usable_cores(self._root)
        device = GPUDevice(
            device_id="cpu:0",
            name=facts.get("model name") or platform.processor() or platform.machine() or "CPU",
            vendor=_VENDORS.get(vendor, vendor) or platform.machine() or "CPU",
            backend=self.name,
            memory_bytes=memory.total_bytes,
            memory_available=memory.free_bytes,
            compute_units=cores,
            support_level=support_level(self.name),
            driver_version=platform.release(),
            device_class=DeviceClass.HOST,
            hardware_id="cpu",
            memory_pool=HOST_POOL,
            slots=cores,
        )
        self._devices = {device.device_id: device}
        return [device]

    def read(self, device_id: str) -> GPUMetrics:
        """The machine's load, memory, clock and temperature; waits where load needs a window."""
        self.require(device_id)
        memory = host.memory(self._root)
        temperature = host.temperature_celsius(self._root)
        clock = host.clock_mhz(self._root)
        missing = {"power_watts": "the operating system gives no power reading for a CPU"}
        if temperature is None:
            missing["temperature_celsius"] = "this platform shows no CPU temperature sensor"
        if clock is None:
            missing["clock_rate_mhz"] = "this platform does not tell the CPU's clock"
        return GPUMetrics(
            device_id=device_id,
            timestamp=time.time(),
            memory_used_bytes=memory.used_bytes,
            memory_total_bytes=memory.total_bytes,
            compute_utilization_percent=self._load.percent(),
            temperature_celsius=temperature,
            clock_rate_mhz=clock,
            missing_reasons=missing,
        )

    def pinning(
        self,
        devices: Sequence[GPUDevice],  # noqa: ARG002 - the one device there is
        inherited: Mapping[str, str],  # noqa: ARG002 - affinity is inherited without a variable
    ) -> dict[str, str | None]:
        """Nothing: every process has the CPU."""
        return {}

    def hiding(self) -> dict[str, str | None]:
        """Nothing: the CPU cannot be hidden."""
        return {}

    def speed(self, device: GPUDevice) -> NumPySpeed:  # noqa: ARG002 - the one there is
        """What can be timed here; for the process that measures."""
        from exo.gpu.backends.cpu_speed import NumPySpeed

        free = host.memory(self._root).free_bytes
        return NumPySpeed(free_bytes=free, cores=host.usable_cores(self._root))

    def _room(self, device: GPUDevice) -> tuple[int, int]:  # noqa: ARG002 - the one there is
        memory = host.memory(self._root)
        return memory.total_bytes, memory.used_bytes

    def _cpuinfo(self) -> dict[str, str]:
        try:
            text = (self._root / "proc/cpuinfo").read_text()
        except OSError:
            return {}
        first = text.split("\n\n", 1)[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
