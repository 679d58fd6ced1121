"""NVIDIA: devices, readings and links through NVML, memory through CUDA.

The only importer of pynvml; what lies below is handed the module.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.backend import on_daemon_thread
from exo.gpu.backends import (
    cuda_pinning,
    nvml_devices,
    nvml_library,
    nvml_links,
    nvml_processes,
    nvml_throttling,
    nvml_xids,
)
from exo.gpu.backends.cuda_buffers import CudaBuffers
from exo.gpu.backends.nvml_events import Xid, XidWatch
from exo.gpu.backends.nvml_readings import Readings, Target
from exo.gpu.backends.nvml_session import NvmlSession
from exo.gpu.backends.nvml_ways import DEAR_NAMES
from exo.gpu.backends.nvml_xids import XidFaults
from exo.gpu.backends.throttling import throttle_kinds
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics, carry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.health import FaultAction
    from exo.gpu.vocabulary.links import Link

# A driver that does not let go by then is left behind.
_CLOSE_SECONDS = 2.0


class CudaBackend(CudaBuffers):
    """NVIDIA GPUs, or the MIG instances that they were cut into.

    Indices are NVML's, in PCI order (``cuda:1``; ``cuda:1:0`` for the first MIG instance of that
    GPU); identities are NVML's UUIDs. ``library`` is the path of the NVML library and
    ``cuda_library`` that of CUDA's, by default those that the loader finds; ``environ`` the
    environment whose CUDA_VISIBLE_DEVICES is the universe, by default this process's own;
    ``sysfs`` where the kernel shows which GPU sleeps.
    """

    name = "cuda"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        library: str | None = None,
        cuda_library: str | None = None,
        sysfs: Path = Path("/sys"),
    ) -> None:
        super().__init__(cuda_library)
        self._environ = environ
        self._library = library
        self._sysfs = sysfs
        self._present: list[GPUDevice] = []
        self._opened: tuple[NvmlSession, Readings] | None = None

    def find(self) -> list[GPUDevice]:
        """Every GPU that NVML lists (``nvidia-smi -L``), less those hidden by the environment.

        A GPU in MIG mode is not listed; its instances are.
        """
        session, _ = self._nvml()
        with session.lock:
            session.close()
            session.open()
            failures: list[str] = []
            listed = list(nvml_devices.listed(session, failures))
            self._present = nvml_devices.told_apart(listed, failures)
            environ = os.environ if self._environ is None else self._environ
            seen = cuda_pinning.visible_devices(environ, self._present)
            self.remark = "; ".join(note for note in (*failures, seen.note) if note)
            found = [self._present[place] for place in seen.places]
            self.hidden = tuple(device for device in self._present if device not in found)
            self._devices = {device.device_id: device for device in found}
            return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one device (``nvidia-smi -q -i UUID``); a sleeping GPU is not woken.

        Raises:
            DeviceLost: when the GPU fell off the bus or needs a reset.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, None)

    def read_quickly(self, device_id: str, before: GPUMetrics) -> GPUMetrics:
        """The same with errors, fan, power limit and PCIe link as they were ``before``.

        Raises:
            DeviceLost: when the GPU fell off the bus or needs a reset.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, before)

    def _sample(self, device_id: str, before: GPUMetrics | None) -> GPUMetrics:
        device = self.require(device_id)
        if nvml_devices.asleep(device, self._sysfs):
            missing = dict.fromkeys(READINGS, "the GPU sleeps and was not woken")
            return GPUMetrics(device_id, time.time(), missing_reasons=missing, sleeping=True)
        session, readings = self._nvml()
        values, missing = session.ask(
            device_id,
            lambda: readings.sample(nvml_devices.target(session, device), dear=before is None),
        )
        if not values:
            raise BackendError(f"{device_id} gave no reading: {missing['temperature_celsius']}")
        if before is not None:
            carry(values, missing, before, DEAR_NAMES)
        kinds = throttle_kinds(values.get("throttle_reasons"), nvml_throttling.MEANINGS)
        return GPUMetrics(
            device_id=device_id,
            timestamp=time.time(),
            missing_reasons=missing,
            throttle_kinds=kinds,
            **values,
        )

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """Compute and graphics processes on one device, each once.

        Raises:
            BackendError: when the driver does not tell, with its reason.

        """
        session, _ = self._nvml()
        device = self.require(device_id)
        return session.ask(
            device_id,
            lambda: nvml_processes.processes(
                session.nvml, device_id, nvml_devices.target(session, device).handle
            ),
        )

    def links(self) -> list[Link]:
        """What NVML tells of each ordered pair of whole GPUs (``nvidia-smi topo -m``)."""
        session, _ = self._nvml()
        return session.ask("links", lambda: nvml_links.links(session, self._targets(session)))

    def capture(self) -> str:
        """What NVML answers to every question here; see :mod:`exo.gpu.backends.nvml_capture`.

        Raises:
            BackendUnavailable: without the driver.

        """
        from exo.gpu.backends import nvml_capture

        session, _ = self._nvml()
        session.open()
        return nvml_capture.capture(session.nvml)

    def watch_xids(self) -> XidWatch:
        """The errors that the driver reports by number, as they happen.

        Raises:
            BackendError: when this driver reports none.

        """
        session, _ = self._nvml()
        session.open()
        return XidWatch(session.nvml, self._targets(session))

    def watch_faults(self) -> XidFaults:
        """The same as faults of devices, each with what it asks for; of a GPU cut up, of each part.

        Raises:
            BackendError: when this driver reports none.

        """
        session, _ = self._nvml()

        def judged(event: Xid) -> tuple[str, FaultAction]:
            device = self._devices[self._members(event.device_id)[0]]

            def ask() -> tuple[str, FaultAction]:
                found = nvml_devices.target(session, device)
                return nvml_xids.judge(session.nvml, found.parent or found.handle, event.xid)

            return session.ask(event.device_id, ask)

        return XidFaults(self.watch_xids(), members=self._members, judged=judged)

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """CUDA_VISIBLE_DEVICES with the full UUIDs, which no order can change."""
        return cuda_pinning.pinning_to(devices, inherited, self._present)

    def hiding(self) -> dict[str, str | None]:
        """An index that no GPU has: CUDA then lists none."""
        return dict(cuda_pinning.HIDING)

    async def shutdown(self) -> None:
        """Free what is still allocated and let go of NVML; harmless twice.

        A driver that hangs is left behind.
        """
        import anyio

        await super().shutdown()
        if self._opened is not None:
            with anyio.move_on_after(_CLOSE_SECONDS):
                await on_daemon_thread(self._opened[0].close, name="exo-gpu-close-cuda")

    def _nvml(self) -> tuple[NvmlSession, Readings]:
        if self._opened is None:
            import pynvml

            nvml: Any = pynvml
            readings = Readings(nvml)
            self._opened = (NvmlSession(nvml, self._library, readings.forget), readings)
        return self._opened

    def _members(self, label: str) -> list[str]:
        """The device that has the label of a GPU, or the MIG instances that it was cut into."""
        return [name for name in self._devices if name == label or name.startswith(f"{label}:")]

    def _targets(self, session: NvmlSession) -> list[Target]:
        """The devices found, less those that are gone."""
        found: list[Target] = []
        for device in self._devices.values():
            try:
                found.append(nvml_devices.target(session, device))
            except session.nvml.NVMLError as error:
                if error.value in nvml_library.REOPEN:
                    raise
                # What is wrong with it, its own reading says.
        return found
