"""Intel: cards of the i915 and xe drivers, read from sysfs, hwmon and fdinfo; used through wgpu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, host, level_zero_readings
from exo.gpu.backends.drm_backend import DrmBackend, is_integrated
from exo.gpu.backends.support import support_level
from exo.gpu.backends.visibility import Visible
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


class LevelZeroBackend(DrmBackend):
    """Intel GPUs on Linux."""

    name = "level_zero"
    vendor = INTEL
    drivers = ("i915", "xe")
    dear_readings = level_zero_readings.DEAR

    def _sample(
        self,
        card: drm.Card,
        device: GPUDevice,  # noqa: ARG002 - its memory is nobody's to read
        *,
        dear: bool,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        return level_zero_readings.Source(card, self._rates, self._proc).read(dear=dear)

    def _visible(self, environ: Mapping[str, str], present: Sequence[GPUDevice]) -> Visible:
        kept = _entries(environ, len(present))
        places = tuple(place for place in range(len(present)) if kept.get(place))
        hidden = len(present) - len(places)
        named = " and ".join(
            f"{name}={environ[name]!r}" for name in (MASK, SELECTOR) if name in environ
        )
        return Visible(places, f"{named} hides {hidden} of {len(present)} cards" if hidden else "")

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

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """The machine's, where it is that; a card's own memory only its Vulkan driver counts."""
        if not is_integrated(device):
            return None, None
        memory = host.memory()
        return memory.total_bytes, memory.used_bytes

    def _describe(self, device_id: str, card: drm.Card) -> GPUDevice:
        clock = warn = critical = None
        if not card.sleeping:
            clock = drm.optional(lambda: card.number_of(*_LARGEST_CLOCKS))
            warn, critical = level_zero_readings.temperature_limits(card)
        return GPUDevice(
            device_id=device_id,
            name=f"Intel GPU [{card.pci_id}]",
            vendor="Intel",
            backend=self.name,
            clock_rate_mhz=clock,
            support_level=support_level(self.name),
            driver_version=card.driver,
            hardware_id=card.pci_address or "",
            pci_address=card.pci_address,
            memory_pool=HOST_POOL if card.pci_address == _INTEGRATED_PLACE else "",
            warn_celsius=warn,
            critical_celsius=critical,
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
