"""The host's CPU as a device: always there, with real memory and the load of the machine."""

from __future__ import annotations

import platform
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.backends import host
from exo.gpu.backends.cpu_speed import NumPySpeed
from exo.gpu.backends.host_buffers import HostBufferBackend
from exo.gpu.backends.support import support_level
from exo.gpu.vocabulary.device import HOST_POOL, DeviceClass, GPUDevice
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Load is a share of a time window: shorter ones are noise (the kernel counts in 10 ms ticks),
# longer ones say nothing of the present.
_SHORTEST_WINDOW_SECONDS = 0.05
_LONGEST_WINDOW_SECONDS = 5.0

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD", "Apple": "Apple"}
# Names that kernels give to the sensor of the CPU package, by preference.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")


class CPUBackend(HostBufferBackend):
    """The processor that this program runs on. ``root`` is where ``proc`` and ``sys`` lie."""

    name = "cpu"

    def __init__(self, *, root: Path = Path("/")) -> None:
        super().__init__()
        self._root = root
        self._lock = threading.Lock()
        self._counted: tuple[float, float, float] | None = None
        self._load: float | None = None

    def find(self) -> list[GPUDevice]:
        """One device with as many slots as this process may use cores (``nproc``)."""
        with self._lock:
            if self._counted is None:
                self._counted = _count()  # the first reading's window begins here
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
        """The machine's load, memory, clock and temperature; waits 50 ms where load needs it."""
        import psutil

        self.require(device_id)
        memory = host.memory(self._root)
        temperature = _temperature_celsius()
        clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        missing = {"power_watts": "the operating system gives no power reading for a CPU"}
        if temperature is None:
            missing["temperature_celsius"] = "this platform shows no CPU temperature sensor"
        if clock is None or not clock.current:
            missing["clock_rate_mhz"] = "this platform does not tell the CPU's clock"
        return GPUMetrics(
            device_id=device_id,
            timestamp=time.time(),
            memory_used_bytes=memory.used_bytes,
            memory_total_bytes=memory.total_bytes,
            compute_utilization_percent=self._load_percent(),
            temperature_celsius=temperature,
            clock_rate_mhz=(clock.current or None) if clock is not None else None,
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

    def _load_percent(self) -> float:
        """Busy share of all cores since the last call, or over at least 50 ms."""
        with self._lock:
            now = _count()
            last = self._counted
            if last is None or now[0] - last[0] > _LONGEST_WINDOW_SECONDS:
                time.sleep(_SHORTEST_WINDOW_SECONDS)
                last, now = now, _count()
            elif now[0] - last[0] < _SHORTEST_WINDOW_SECONDS and self._load is not None:
                return self._load
            elif now[0] - last[0] < _SHORTEST_WINDOW_SECONDS:
                time.sleep(last[0] + _SHORTEST_WINDOW_SECONDS - now[0])
                now = _count()
            all_seconds = now[2] - last[2]
            busy = (now[1] - last[1]) / all_seconds if all_seconds > 0 else 0.0
            self._counted = now
            self._load = min(100.0, max(0.0, 100.0 * busy))
            return self._load


def _count() -> tuple[float, float, float]:
    """Monotonic seconds, busy CPU seconds and all CPU seconds."""
    import psutil

    times = psutil.cpu_times()
    everything = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    return time.monotonic(), everything - idle, everything


def _temperature_celsius() -> float | None:
    import psutil

    try:
        sensors = psutil.sensors_temperatures()
    except AttributeError:  # macOS and Windows have none in psutil
        return None
    for name in _SENSORS:
        readings = [entry.current for entry in sensors.get(name, ()) if entry.current]
        if readings:
            return max(readings)
    return None
