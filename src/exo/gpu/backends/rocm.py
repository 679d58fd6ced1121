"""AMD: cards of the amdgpu driver, read from sysfs, used through wgpu; no library of AMD's."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, drm_clients, host, kfd, rocm_readings
from exo.gpu.backends.counter_rates import CounterRates
from exo.gpu.backends.support import support_level
from exo.gpu.backends.visibility import Visible, visible
from exo.gpu.backends.webgpu_buffers import WebGPUBuffers, open_card
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import (
    BackendError,
    BackendUnavailable,
    DeviceLost,
    ReadingMissing,
)
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics, carry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.backends.webgpu import WebGPUDevice

AMD = "1002"

# gpu_metrics opens with its size (2 bytes) and format; formats from 2 on are of processors with
# graphics inside (kernel, kgd_pp_interface.h).
_FIRST_INTEGRATED_FORMAT = 2

# libdrm's list of marketing names: "device, revision, name" in hexadecimal.
_NAMES = Path("/usr/share/libdrm/amdgpu.ids")

# The lists that restrict AMD cards, in the order in which the layers apply them.
_LISTS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


class RocmBackend(WebGPUBuffers):
    """AMD GPUs on Linux.

    ``root`` is where the DRM cards lie, ``proc`` where the processes do, ``names`` libdrm's list
    of marketing names, ``topology`` where KFD's nodes lie, ``clock`` gives monotonic seconds, and
    ``vendor`` is whose PCI cards these are.
    """

    name = "rocm"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        root: Path | str = drm.SYSFS,
        proc: Path | str = drm_clients.PROC,
        names: Path | str = _NAMES,
        topology: Path | str = kfd.TOPOLOGY,
        clock: Callable[[], float] = time.monotonic,
        vendor: str = AMD,
    ) -> None:
        super().__init__()
        self._vendor = vendor
        self._environ = environ
        self._root = Path(root)
        self._proc = Path(proc)
        self._names = Path(names)
        self._topology = Path(topology)
        self._rates = CounterRates(clock)
        self._present: list[GPUDevice] = []
        self._cards: dict[str, tuple[drm.Card, bool]] = {}

    def find(self) -> list[GPUDevice]:
        """Every amdgpu card (``lspci -d 1002:``), less those hidden by the environment."""
        cards = [card for card in self._all_cards() if card.driver == "amdgpu"]
        if not cards:
            raise BackendUnavailable(
                f"no card of the amdgpu driver under {self._root}",
                "load the driver: modprobe amdgpu; in a container, mount /sys",
            )
        self._present = []
        self._cards = {}
        lost: list[str] = []
        for card in cards:
            try:
                integrated = _integrated(card)
                device = self._describe(len(self._present), card, integrated=integrated)
            except DeviceLost as error:
                lost.append(str(error))
                continue
            self._present.append(device)
            self._cards[device.device_id] = (card, integrated)
        seen = self._visible(os.environ if self._environ is None else self._environ)
        self.remark = "; ".join([*lost, *([seen.note] if seen.note else [])])
        found = [self._present[place] for place in seen.places]
        self.hidden = tuple(device for device in self._present if device not in found)
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one card (``amd-smi metric``); a sleeping card is not woken.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, None)

    def read_quickly(self, device_id: str, before: GPUMetrics) -> GPUMetrics:
        """The same with errors, fan, power limit and PCIe link as they were ``before``.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, before)

    def _sample(self, device_id: str, before: GPUMetrics | None) -> GPUMetrics:
        self.require(device_id)
        card, integrated = self._cards[device_id]
        if card.sleeping:
            reason = "the card sleeps and was not woken"
            missing = dict.fromkeys(READINGS, reason)
            return GPUMetrics(device_id, time.time(), missing_reasons=missing, sleeping=True)
        values, missing = rocm_readings.read(card, integrated=integrated, dear=before is None)
        if not values:
            raise BackendError(f"{device_id} gave no reading: {missing['memory_used_bytes']}")
        if "compute_utilization_percent" not in values:
            self._add_lower_bound(card, values, missing)
        if before is not None:
            carry(values, missing, before, rocm_readings.DEAR)
        return GPUMetrics(device_id, time.time(), **values, missing_reasons=missing)

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """The processes that we may see, by their own account (``amd-smi process``).

        Raises:
            BackendError: when the processes cannot be listed at all.

        """
        self.require(device_id)
        card, integrated = self._cards[device_id]
        return drm_clients.processes(card.pci_address, integrated=integrated, proc=self._proc)

    def _add_lower_bound(
        self, card: drm.Card, values: dict[str, Any], missing: dict[str, str]
    ) -> None:
        """The work of the programs that we may see, where the card itself tells no busy share."""
        try:
            seen = drm_clients.clients(card.pci_address, proc=self._proc)
            busy = drm_clients.busy_percent(seen, self._rates, card.place)
        except BackendError as reason:
            missing["compute_utilization_percent"] += f"; {reason}"
            return
        values["compute_utilization_percent"] = busy
        values["utilization_is_lower_bound"] = True
        del missing["compute_utilization_percent"]

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """ROCR_VISIBLE_DEVICES alone; HIP's and CUDA's lists would renumber what it leaves.

        Raises:
            BackendError: when the environment excludes the device, or when it has no unique id
                and is not the only card, so that no index is sure to name it.

        """
        names = ",".join(self._name_of(device, inherited) for device in devices)
        cleared = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
        return {"ROCR_VISIBLE_DEVICES": names, **dict.fromkeys(cleared)}

    def _name_of(self, device: GPUDevice, inherited: Mapping[str, str]) -> str:
        present = self._present or [device]
        seen = self._visible(inherited, present)
        if device.device_id not in {present[place].device_id for place in seen.places}:
            raise BackendError(f"{device.device_id} is hidden: {seen.note}")
        if device.hardware_id.startswith("GPU-"):
            return device.hardware_id
        if len(present) == 1:
            return "0"
        raise BackendError(
            f"{device.device_id} has no unique id, and ROCm numbers its {len(present)} cards "
            "in an order of its own"
        )

    def hiding(self) -> dict[str, str | None]:
        """An index that no card has: ROCm then lists none."""
        return {"ROCR_VISIBLE_DEVICES": "-1"}

    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        card, _ = self._cards[device.device_id]
        return self._once(card.place, lambda: open_card(card, self._all_cards()))

    def _all_cards(self) -> list[drm.Card]:
        return drm.cards(self._root, vendor=self._vendor)

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """The card's own account; in a processor no more is free than the machine has."""
        card, integrated = self._cards[device.device_id]
        total, used = (
            drm.optional(lambda what=what: rocm_readings.memory(card, what, integrated=integrated))
            for what in ("total", "used")
        )
        if integrated:
            memory = host.memory()
            if total is None:
                return memory.total_bytes, memory.used_bytes
            used = max(used or 0, total - memory.free_bytes)
        return total, used

    def _visible(
        self, environ: Mapping[str, str], present: list[GPUDevice] | None = None
    ) -> Visible:
        """What all lists leave; HIP counts among what ROCr leaves, in an order of its own."""
        present = self._present if present is None else present
        places = tuple(range(len(present)))
        notes: list[str] = []
        for variable in _LISTS:
            left = [present[place] for place in places]
            seen = visible(
                variable,
                environ.get(variable),
                [device.hardware_id for device in left],
                order_known=len(left) <= 1,
            )
            places = tuple(places[place] for place in seen.places)
            notes += [seen.note] if seen.note else []
        return Visible(places, "; ".join(notes))

    def _describe(self, index: int, card: drm.Card, *, integrated: bool) -> GPUDevice:
        # These two the driver keeps in memory: reading them wakes no card (amdgpu_pm.c,
        # amdgpu_vram_mgr.c), and without them a sleeping card would change its identity.
        unique = drm.optional(lambda: card.text("device/unique_id")) or ""
        total = drm.optional(lambda: rocm_readings.memory(card, "total", integrated=integrated))
        identity = f"GPU-{unique}" if unique.strip("0") else card.pci_address or ""
        node, clock = kfd.NOTHING, None
        if not card.sleeping:
            node = kfd.node(card.pci_address, self._topology)
            clock = drm.optional(lambda: rocm_readings.largest_clock_mhz(card))
        return GPUDevice(
            device_id=f"rocm:{index}",
            name=self._name(card),
            vendor="AMD",
            backend=self.name,
            memory_bytes=total,
            compute_capability=node.target,
            compute_units=node.compute_units,
            clock_rate_mhz=node.clock_rate_mhz or clock,
            support_level=support_level(self.name),
            driver_version=card.driver,
            hardware_id=identity,
            pci_address=card.pci_address,
            memory_pool=HOST_POOL if integrated else "",
        )

    def _name(self, card: drm.Card) -> str:
        """The card's own name, else the one libdrm lists for its ids, else the ids."""
        own = drm.optional(lambda: card.text("device/product_name"))
        if own:
            return own
        revision = drm.optional(lambda: card.text("device/revision")) or ""
        wanted = (card.pci_id.partition(":")[2], revision.lower().removeprefix("0x"))
        try:
            lines = self._names.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            parts = [part.strip() for part in line.split(",", 2)]
            if len(parts) == 3 and (parts[0].lower(), parts[1].lower()) == wanted:
                return parts[2] or f"AMD GPU [{card.pci_id}]"
        return f"AMD GPU [{card.pci_id}]"


def _integrated(card: drm.Card) -> bool:
    """True for graphics inside a processor; a sleeping card is not asked, and is discrete."""
    if card.sleeping:
        return False
    try:
        header = card.whole("device/gpu_metrics")[:4]
    except ReadingMissing:
        return False
    return len(header) == 4 and header[2] >= _FIRST_INTEGRATED_FORMAT
