"""NVIDIA: devices and their readings through NVML; the only importer of pynvml."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from exo.gpu.backend import GPUBackend, on_daemon_thread
from exo.gpu.backends import nvml_library
from exo.gpu.backends.support import support_level
from exo.gpu.backends.visibility import Visible, visible
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import BackendError, InvalidValue, ReadingMissing
from exo.gpu.vocabulary.metrics import GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("exo.gpu.backends.cuda")

# A driver that does not let go by then is left behind.
_CLOSE_SECONDS = 2.0

_MEMORY = ("memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes")


class CudaBackend(GPUBackend):
    """NVIDIA GPUs. Indices are NVML's, in PCI order; identities are NVML's UUIDs.

    ``library`` is the path of the NVML library, by default the one that the loader finds;
    ``environ`` the environment whose CUDA_VISIBLE_DEVICES is the universe, by default this
    process's own.
    """

    name = "cuda"

    def __init__(
        self, *, environ: Mapping[str, str] | None = None, library: str | None = None
    ) -> None:
        super().__init__()
        self._environ = environ
        self._library = library
        self._present: list[GPUDevice] = []
        self._lock = threading.RLock()
        self._opened_by: int | None = None
        self._openings = 0
        self._handles: dict[str, Any] = {}
        self._absent_readings: dict[tuple[str, str], str] = {}

    @property
    def _nvml(self) -> Any:
        import pynvml

        return pynvml

    def find(self) -> list[GPUDevice]:
        """Every GPU that NVML lists (``nvidia-smi -L``), less those hidden by the environment."""
        with self._lock:
            self._close()
            self._open()
            failures: list[str] = []
            self._present = []
            driver = self._fact(self._nvml.nvmlSystemGetDriverVersion)
            for index in range(self._count()):
                try:
                    self._present.append(self._describe(index, driver))
                except (self._nvml.NVMLError, InvalidValue) as error:
                    failures.append(f"GPU {index}: {error}")
            seen = self._visible(os.environ if self._environ is None else self._environ)
            self.remark = "; ".join(note for note in (*failures, seen.note) if note)
            found = [self._present[place] for place in seen.places]
            self._devices = {device.device_id: device for device in found}
            return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one GPU (``nvidia-smi -q -i UUID``).

        Raises:
            DeviceLost: when the GPU fell off the bus or needs a reset.
            BackendError: when it gave nothing at all.

        """
        device = self.require(device_id)
        self._open()
        opening = self._openings
        try:
            return self._sample(device)
        except self._nvml.NVMLError as error:
            if error.value != nvml_library.UNINITIALIZED:
                raise nvml_library.failure(device_id, error) from error
        with self._lock:
            if opening == self._openings:  # else another device's reading opened it anew
                self._close()
        try:
            return self._sample(device)
        except self._nvml.NVMLError as error:
            raise nvml_library.failure(device_id, error) from error

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """CUDA_VISIBLE_DEVICES with the full UUIDs, which no order can change."""
        names = ",".join(self._name_of(device, inherited) for device in devices)
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": names}

    def _name_of(self, device: GPUDevice, inherited: Mapping[str, str]) -> str:
        present = self._present or [device]
        names = [known.hardware_id for known in present]
        place = names.index(device.hardware_id) if device.hardware_id in names else None
        seen = self._visible(inherited, present)
        if place not in seen.places:
            value = inherited.get("CUDA_VISIBLE_DEVICES")
            raise BackendError(
                f"{device.device_id} is not among CUDA_VISIBLE_DEVICES={value!r}"
                + (f": {seen.note}" if seen.note else "")
            )
        by_uuid = device.hardware_id.startswith("GPU-")
        return device.hardware_id if by_uuid else str(_index(device))

    def hiding(self) -> dict[str, str | None]:
        """An index that no GPU has: CUDA then lists none."""
        return {"CUDA_VISIBLE_DEVICES": "-1"}

    async def shutdown(self) -> None:
        """Let go of NVML; harmless twice. A driver that hangs is left behind."""
        import anyio

        await super().shutdown()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await on_daemon_thread(self._close_alone, name="exo-gpu-close-cuda")

    def _visible(
        self, environ: Mapping[str, str], present: list[GPUDevice] | None = None
    ) -> Visible:
        present = self._present if present is None else present
        alike = len({(device.name, device.memory_bytes) for device in present}) <= 1
        return visible(
            "CUDA_VISIBLE_DEVICES",
            environ.get("CUDA_VISIBLE_DEVICES"),
            [device.hardware_id for device in present],
            order_known=alike or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID",
        )

    def _describe(self, index: int, driver: str | None) -> GPUDevice:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._fact(lambda: nvml_library.memory(nvml, handle))
        capability = self._fact(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        pci = self._fact(lambda: nvml_library.pci_address(nvml.nvmlDeviceGetPciInfo(handle)))
        clock = self._fact(
            lambda: nvml_library.real(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
        )
        return GPUDevice(
            device_id=f"cuda:{index}",
            name=self._fact(lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU",
            vendor="NVIDIA",
            backend=self.name,
            compute_capability=".".join(map(str, capability)) if capability else None,
            memory_bytes=memory[0] if memory else None,
            memory_available=max(0, memory[0] - memory[1] - (memory[2] or 0)) if memory else None,
            clock_rate_mhz=clock,
            support_level=support_level(self.name),
            driver_version=driver,
            hardware_id=self._fact(lambda: nvml.nvmlDeviceGetUUID(handle)) or pci or "",
            pci_address=pci,
        )

    def _sample(self, device: GPUDevice) -> GPUMetrics:
        self._open()
        handle = self._handles.get(device.device_id)
        if handle is None:
            handle = self._find_handle(device)
            self._handles[device.device_id] = handle
        values: dict[str, Any] = {}
        missing: dict[str, str] = {}
        for field, call in self._calls(handle).items():
            value, reason = self._reading(device.device_id, field, call)
            names = _MEMORY if field == "memory" else (field,)
            if value is None:
                missing.update(dict.fromkeys(names, reason))
            else:
                values.update(zip(names, value if field == "memory" else (value,), strict=True))
        if not values:
            raise BackendError(f"{device.device_id} gave no reading: {missing['power_watts']}")
        missing.pop("memory_reserved_bytes", None)
        return GPUMetrics(
            device_id=device.device_id, timestamp=time.time(), missing_reasons=missing, **values
        )

    def _calls(self, handle: Any) -> dict[str, Callable[[], Any]]:
        """One driver call per reading, in the units of GPUMetrics; NVML speaks milliwatts."""
        nvml = self._nvml
        return {
            "memory": lambda: nvml_library.memory(nvml, handle),
            "compute_utilization_percent": lambda: nvml_library.real(
                nvml.nvmlDeviceGetUtilizationRates(handle).gpu, most=100
            ),
            "power_watts": lambda: nvml_library.real(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000,
            "temperature_celsius": lambda: nvml_library.temperature(nvml, handle),
            "clock_rate_mhz": lambda: nvml_library.real(
                nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            ),
        }

    def _find_handle(self, device: GPUDevice) -> Any:
        if device.hardware_id.startswith("GPU-"):
            return self._nvml.nvmlDeviceGetHandleByUUID(device.hardware_id)
        return self._nvml.nvmlDeviceGetHandleByIndex(_index(device))

    def _reading(self, device_id: str, field: str, call: Callable[[], Any]) -> tuple[Any, str]:
        reason = self._absent_readings.get((device_id, field))
        if reason is not None:
            return None, reason
        try:
            return call(), ""
        except self._nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
            reason = nvml_library.REASONS.get(error.value)
            if reason is not None:  # it will not change while this driver is loaded
                self._absent_readings[device_id, field] = reason
            return None, reason or str(error)
        except ReadingMissing as error:
            return None, str(error)
        except Exception as error:  # the vendor-read border: it costs this reading, not all
            logger.warning("reading %s of %s failed", field, device_id, exc_info=True)
            return None, f"{type(error).__name__}: {error}"

    def _fact(self, call: Callable[[], Any]) -> Any:
        """A fact that may be absent, such as a name; what concerns the whole GPU is raised."""
        try:
            return call()
        except self._nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
        except ReadingMissing:
            return None
        except Exception:  # the vendor-read border: it costs this fact, not the GPU
            logger.warning("a fact about an NVIDIA GPU could not be read", exc_info=True)
        return None

    def _count(self) -> int:
        try:
            return self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            raise nvml_library.unavailable(error) from error

    def _open(self) -> None:
        """Initialise NVML once per process: it does not survive a fork."""
        if self._opened_by == os.getpid():
            return
        if self._opened_by is not None:  # forked: a thread that is not here may hold the lock
            self._lock = threading.RLock()
        with self._lock:
            if self._opened_by == os.getpid():
                return
            self._handles = {}
            self._absent_readings = {}
            try:
                nvml_library.load(self._nvml, self._library)
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                raise nvml_library.unavailable(error) from error
            self._opened_by = os.getpid()
            self._openings += 1

    def _close(self) -> None:
        if self._opened_by == os.getpid():
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                logger.debug("nvmlShutdown: %s", error)
        self._opened_by = None
        self._handles = {}

    def _close_alone(self) -> None:
        with self._lock:
            self._close()


def _index(device: GPUDevice) -> int:
    """NVML's index, for the rare GPU without a UUID."""
    return int(device.device_id.rpartition(":")[2])
