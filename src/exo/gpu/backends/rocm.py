"""AMD: cards of the amdgpu driver, read from sysfs and hwmon; nothing of AMD's to install."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.backend import GPUBackend
from exo.gpu.backends import drm
from exo.gpu.backends.support import support_level
from exo.gpu.backends.visibility import Visible, visible
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

AMD = "1002"

# gpu_metrics opens with its size (2 bytes) and format; formats from 2 on are of processors with
# graphics inside (kernel, kgd_pp_interface.h).
_FIRST_INTEGRATED_FORMAT = 2

# Millidegrees Celsius of absolute zero.
_LOWEST = -273_150

# The lists that restrict AMD cards, in the order in which the layers apply them.
_LISTS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


class RocmBackend(GPUBackend):
    """AMD GPUs on Linux. ``root`` is where the DRM cards lie."""

    name = "rocm"

    def __init__(
        self, *, environ: Mapping[str, str] | None = None, root: Path | str = drm.SYSFS
    ) -> None:
        super().__init__()
        self._environ = environ
        self._root = Path(root)
        self._present: list[GPUDevice] = []
        self._cards: dict[str, tuple[drm.Card, bool]] = {}

    def find(self) -> list[GPUDevice]:
        """Every amdgpu card (``lspci -d 1002:``), less those hidden by the environment."""
        cards = [card for card in drm.cards(self._root, vendor=AMD) if card.driver == "amdgpu"]
        if not cards:
            raise BackendUnavailable(
                f"no card of the amdgpu driver under {self._root}",
                "load the driver: modprobe amdgpu; in a container, mount /sys",
            )
        self._present = []
        self._cards = {}
        for index, card in enumerate(cards):
            integrated = _integrated(card)
            device = self._describe(index, card, integrated=integrated)
            self._present.append(device)
            self._cards[device.device_id] = (card, integrated)
        seen = self._visible(os.environ if self._environ is None else self._environ)
        self.remark = seen.note
        found = [self._present[place] for place in seen.places]
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one card (``amd-smi metric``); a sleeping card is not woken.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        self.require(device_id)
        card, integrated = self._cards[device_id]
        if card.sleeping:
            reason = "the card sleeps and was not woken"
            missing = dict.fromkeys(READINGS, reason)
            return GPUMetrics(device_id, time.time(), missing_reasons=missing, sleeping=True)
        calls: dict[str, Callable[[], Any]] = {
            "memory_used_bytes": lambda: _memory(card, "used", integrated=integrated),
            "memory_total_bytes": lambda: _memory(card, "total", integrated=integrated),
            "compute_utilization_percent": lambda: card.number_of(
                "device/gpu_busy_percent", high=100
            ),
            # hwmon speaks microwatts, millidegrees and hertz.
            "power_watts": lambda: _power_microwatts(card) / 1e6,
            "temperature_celsius": lambda: (
                card.number_of(card.labelled("temp", ["edge"]), low=_LOWEST) / 1e3
            ),
            "clock_rate_mhz": lambda: card.number_of(card.labelled("freq", ["sclk"])) / 1e6,
        }
        values, missing = drm.gather(calls)
        if not values:
            raise BackendError(f"{device_id} gave no reading: {missing['memory_used_bytes']}")
        if values.get("memory_used_bytes", 0) > values.get("memory_total_bytes", 0):
            del values["memory_used_bytes"]
            missing["memory_used_bytes"] = "the driver tells no total that it fits in"
        return GPUMetrics(device_id, time.time(), **values, missing_reasons=missing)

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
        total = drm.optional(lambda: _memory(card, "total", integrated=integrated))
        identity = f"GPU-{unique}" if unique.strip("0") else card.pci_address or ""
        return GPUDevice(
            device_id=f"rocm:{index}",
            name=drm.optional(lambda: card.text("device/product_name"))
            or f"AMD GPU [{card.pci_id}]",
            vendor="AMD",
            backend=self.name,
            memory_bytes=total,
            support_level=support_level(self.name),
            driver_version=card.driver,
            hardware_id=identity,
            pci_address=card.pci_address,
            memory_pool=HOST_POOL if integrated else "",
        )


def _integrated(card: drm.Card) -> bool:
    """True for graphics inside a processor; a sleeping card is not asked, and is discrete."""
    if card.sleeping:
        return False
    header = card.first_bytes("device/gpu_metrics", 4)
    return len(header) == 4 and header[2] >= _FIRST_INTEGRATED_FORMAT


def _memory(card: drm.Card, what: str, *, integrated: bool) -> int:
    """Bytes of video memory; where it is the machine's own, what is mapped counts too."""
    own = card.number_of(f"device/mem_info_vram_{what}")
    return own + card.number_of(f"device/mem_info_gtt_{what}") if integrated else own


def _power_microwatts(card: drm.Card) -> int:
    folder = card.hwmon()
    return card.number_of(f"{folder}/power1_average", f"{folder}/power1_input")
