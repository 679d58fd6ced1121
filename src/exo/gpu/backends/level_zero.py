"""Intel: cards of the i915 and xe drivers, read from sysfs, hwmon and fdinfo; used through wgpu."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exo.gpu.backends import drm, drm_clients, host, level_zero_readings
from exo.gpu.backends.counter_rates import CounterRates
from exo.gpu.backends.support import support_level
from exo.gpu.backends.webgpu_buffers import WebGPUBuffers, open_card
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, DeviceLost
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics, carry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.backends.webgpu import WebGPUDevice

INTEL = "8086"
MASK = "ZE_AFFINITY_MASK"
ORDER = "ZE_ENABLE_PCI_ID_DEVICE_ORDER"
SELECTOR = "ONEAPI_DEVICE_SELECTOR"

# Selectors that leave every Level Zero device.
_UNSELECTIVE = {"", "*:*", "*:gpu", "level_zero:*", "level_zero:gpu"}

# Far above any machine's number of devices; a mask that names no device leaves none.
_NO_DEVICE = "999"

# Of xe, then of i915; both in MHz.
_LARGEST_CLOCKS = ("device/tile0/gt0/freq0/max_freq", "gt_max_freq_mhz")

# Intel's processors have their graphics at this place of the first bus.
_INTEGRATED_PLACE = "0000:00:02.0"


class LevelZeroBackend(WebGPUBuffers):
    """Intel GPUs on Linux.

    ``root`` is where the DRM cards lie, ``proc`` where the processes do, ``clock`` gives monotonic
    seconds, and ``vendor`` is whose PCI cards these are.
    """

    name = "level_zero"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        root: Path | str = drm.SYSFS,
        proc: Path | str = drm_clients.PROC,
        clock: Callable[[], float] = time.monotonic,
        vendor: str = INTEL,
    ) -> None:
        super().__init__()
        self._vendor = vendor
        self._environ = environ
        self._root = Path(root)
        self._proc = Path(proc)
        self._rates = CounterRates(clock)
        self._present: list[GPUDevice] = []
        self._cards: dict[str, drm.Card] = {}

    def find(self) -> list[GPUDevice]:
        """Every i915 or xe card (``lspci -d 8086:``), less those hidden by the environment."""
        cards = [card for card in self._all_cards() if card.driver in {"i915", "xe"}]
        if not cards:
            raise BackendUnavailable(
                f"no card of the i915 or xe driver under {self._root}",
                "load the driver: modprobe xe or i915; in a container, mount /sys",
            )
        self._present = []
        self._cards = {}
        lost: list[str] = []
        for card in cards:
            try:
                device = self._describe(len(self._present), card)
            except DeviceLost as error:
                lost.append(str(error))
                continue
            self._present.append(device)
            self._cards[device.device_id] = card
        environ = os.environ if self._environ is None else self._environ
        kept = _entries(environ, len(self._present))
        found = [device for place, device in enumerate(self._present) if kept.get(place)]
        self.hidden = tuple(device for device in self._present if device not in found)
        hidden = len(self.hidden)
        named = " and ".join(
            f"{name}={environ[name]!r}" for name in (MASK, SELECTOR) if name in environ
        )
        note = [f"{named} hides {hidden} of {len(self._present)} cards"] if hidden else []
        self.remark = "; ".join([*lost, *note])
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one card; a sleeping card is not woken.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, None)

    def read_quickly(self, device_id: str, before: GPUMetrics) -> GPUMetrics:
        """The same with fan, power limit and PCIe link as they were ``before``.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._sample(device_id, before)

    def _sample(self, device_id: str, before: GPUMetrics | None) -> GPUMetrics:
        self.require(device_id)
        card = self._cards[device_id]
        if card.sleeping:
            missing = dict.fromkeys(READINGS, "the card sleeps and was not woken")
            return GPUMetrics(device_id, time.time(), missing_reasons=missing, sleeping=True)
        source = level_zero_readings.Source(card, self._rates, self._proc)
        values, missing = source.read(dear=before is None)
        if not values:
            raise BackendError(f"{device_id} gave no reading: {missing['clock_rate_mhz']}")
        if before is not None:
            carry(values, missing, before, level_zero_readings.DEAR)
        return GPUMetrics(device_id, time.time(), **values, missing_reasons=missing)

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """The processes that we may see, by their own account.

        Raises:
            BackendError: when the processes cannot be listed at all.

        """
        device = self.require(device_id)
        return drm_clients.processes(
            device.pci_address, integrated=device.memory_pool == HOST_POOL, proc=self._proc
        )

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """ZE_AFFINITY_MASK with indices in PCI order; an inherited choice of tiles is kept.

        Raises:
            BackendError: when the environment excludes a device.

        """
        kept = [entry for device in devices for entry in self._entries_of(device, inherited)]
        return {MASK: ",".join(kept), ORDER: "1", SELECTOR: None}

    def _entries_of(self, device: GPUDevice, inherited: Mapping[str, str]) -> Sequence[str]:
        names = [known.hardware_id for known in self._present]
        if device.hardware_id not in names:
            raise BackendError(f"{device.device_id} is not among the Intel cards found here")
        kept = _entries(inherited, len(names)).get(names.index(device.hardware_id))
        if not kept:
            raise BackendError(f"{device.device_id} is hidden by {MASK} or {SELECTOR}")
        return kept

    def hiding(self) -> dict[str, str | None]:
        """A mask that names no device."""
        return {MASK: _NO_DEVICE}

    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        card = self._cards[device.device_id]
        return self._once(card.place, lambda: open_card(card, self._all_cards()))

    def _all_cards(self) -> list[drm.Card]:
        return drm.cards(self._root, vendor=self._vendor)

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """The machine's, where it is that; a card's own memory only its Vulkan driver counts."""
        if device.memory_pool != HOST_POOL:
            return None, None
        memory = host.memory()
        return memory.total_bytes, memory.used_bytes

    def _describe(self, index: int, card: drm.Card) -> GPUDevice:
        clock = None if card.sleeping else drm.optional(lambda: card.number_of(*_LARGEST_CLOCKS))
        return GPUDevice(
            device_id=f"level_zero:{index}",
            name=f"Intel GPU [{card.pci_id}]",
            vendor="Intel",
            backend=self.name,
            clock_rate_mhz=clock,
            support_level=support_level(self.name),
            driver_version=card.driver,
            hardware_id=card.pci_address or "",
            pci_address=card.pci_address,
            memory_pool=HOST_POOL if card.pci_address == _INTEGRATED_PLACE else "",
        )


def _entries(environ: Mapping[str, str], count: int) -> dict[int, list[str]]:
    """Entries of the inherited mask ("1", or "1.0" for a tile) by device, in PCI order.

    Without PCI order the indices of several devices cannot be matched, and none is kept; nor
    is any under a selector, which counts what a mask leaves and so cannot stand beside ours.
    """
    if environ.get(SELECTOR, "*:*") not in _UNSELECTIVE:
        return {}
    mask = environ.get(MASK)
    if not mask:
        return {place: [str(place)] for place in range(count)}
    if count > 1 and environ.get(ORDER) != "1":
        return {}
    kept: dict[int, list[str]] = {}
    for entry in (part.strip() for part in mask.split(",")):
        place = entry.partition(".")[0]
        if place.isascii() and place.isdigit() and int(place) < count:
            kept.setdefault(int(place), []).append(entry)
    return kept
