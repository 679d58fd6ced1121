"""What the backends of Linux's DRM cards share: listing, sleep, processes and the way to wgpu."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, drm_clients
from exo.gpu.backends.counter_rates import CounterRates
from exo.gpu.backends.webgpu_buffers import WebGPUBuffers, open_card
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, BackendUnavailable, DeviceLost, NoSuchDevice
from exo.gpu.vocabulary.metrics import READINGS, GPUMetrics, carry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exo.gpu.backend import DeviceProcess
    from exo.gpu.backends.visibility import Visible
    from exo.gpu.backends.webgpu import WebGPUDevice


def is_integrated(device: GPUDevice) -> bool:
    """True for graphics inside a processor, whose memory is the machine's."""
    return device.memory_pool == HOST_POOL


class DrmBackend(WebGPUBuffers):
    """Cards of one PCI vendor under its kernel drivers; a vendor adds the hooks below.

    ``root`` is where the DRM cards lie, ``proc`` where the processes do, ``clock`` gives monotonic
    seconds, and ``vendor`` is whose PCI cards these are, by default the backend's own.
    """

    vendor = ""
    """Four hexadecimal digits of the PCI SIG's."""
    drivers: tuple[str, ...] = ()
    """Names of the kernel drivers."""
    dear_readings: tuple[str, ...] = ()
    """What costs more to read, or moves seldom."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        root: Path | str = drm.SYSFS,
        proc: Path | str = drm_clients.PROC,
        clock: Callable[[], float] = time.monotonic,
        vendor: str = "",
    ) -> None:
        super().__init__()
        self._vendor = vendor or self.vendor
        self._environ = environ
        self._root = Path(root)
        self._proc = Path(proc)
        self._rates = CounterRates(clock)
        self._present: list[GPUDevice] = []
        self._cards: dict[str, drm.Card] = {}

    @abstractmethod
    def _describe(self, device_id: str, card: drm.Card) -> GPUDevice:
        """The card as a device; of a sleeping one, what wakes it not.

        Raises:
            DeviceLost: when the card is gone.

        """

    @abstractmethod
    def _visible(self, environ: Mapping[str, str], present: Sequence[GPUDevice]) -> Visible:
        """Which of the devices that are present an environment leaves."""

    @abstractmethod
    def _sample(
        self, card: drm.Card, device: GPUDevice, *, dear: bool
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Readings by field name, and why the others are missing; without ``dear`` not those.

        Raises:
            DeviceLost: when the card is gone.

        """

    def find(self) -> list[GPUDevice]:
        """Every card (``lspci -k``), less those hidden by the environment."""
        every = drm.cards(self._root)
        listed = [
            card
            for card in every
            if card.driver in self.drivers and card.pci_id.startswith(f"{self._vendor}:")
        ]
        notes = [card.trouble for card in every if card.trouble]
        if not listed:
            names = " or ".join(self.drivers)
            nothing = f"no card of the {names} driver under {self._root}"
            raise BackendUnavailable(
                "; ".join((nothing, *notes)),
                f"load the driver: modprobe {names}; in a container, mount /sys",
            )
        present: list[GPUDevice] = []
        cards: dict[str, drm.Card] = {}
        for card in listed:
            try:
                present.append(self._describe(f"{self.name}:{len(present)}", card))
            except DeviceLost as error:
                notes.append(str(error))
                continue
            cards[present[-1].device_id] = card
        seen = self._visible(os.environ if self._environ is None else self._environ, present)
        found = [present[place] for place in seen.places]
        self.remark = "; ".join(filter(None, (*notes, seen.note)))
        self.hidden = tuple(device for device in present if device not in found)
        # Whole, since others may read meanwhile.
        self._present, self._cards = present, cards
        self._devices = {device.device_id: device for device in found}
        return found

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one card; a sleeping card is not woken.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._read_card(device_id, None)

    def read_quickly(self, device_id: str, before: GPUMetrics) -> GPUMetrics:
        """The same, with what is dear as it was ``before``.

        Raises:
            DeviceLost: when the card is gone.
            BackendError: when it gave nothing at all.

        """
        return self._read_card(device_id, before)

    def _read_card(self, device_id: str, before: GPUMetrics | None) -> GPUMetrics:
        device, card = self.require(device_id), self._card(device_id)
        if card.sleeping:
            missing = dict.fromkeys(READINGS, "the card sleeps and was not woken")
            return GPUMetrics(device_id, time.time(), missing_reasons=missing, sleeping=True)
        values, missing = self._sample(card, device, dear=before is None)
        if not values:
            raise BackendError(f"{device_id} gave no reading: {missing['clock_rate_mhz']}")
        if before is not None:
            carry(values, missing, before, self.dear_readings)
        return GPUMetrics(device_id, time.time(), **values, missing_reasons=missing)

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """The processes that we may see, by their own account (``amd-smi process``).

        Raises:
            BackendError: when the processes cannot be listed at all.

        """
        device = self.require(device_id)
        return drm_clients.processes(
            device.pci_address, integrated=is_integrated(device), proc=self._proc
        )

    def _card(self, device_id: str) -> drm.Card:
        card = self._cards.get(device_id)
        if card is None:
            raise NoSuchDevice(f"{self.name} has no card {device_id!r} any more")
        return card

    def _adapter(self, device: GPUDevice) -> WebGPUDevice:
        card = self._card(device.device_id)
        return self._once(card.place, lambda: open_card(card, self._all_cards()))

    def _all_cards(self) -> list[drm.Card]:
        return drm.cards(self._root, vendor=self._vendor)
