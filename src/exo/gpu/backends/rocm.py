"""AMD: cards of the amdgpu driver, read from sysfs, used through wgpu; no library of AMD's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.backends import drm, drm_clients, host, kfd, rocm_readings
from exo.gpu.backends.drm_backend import DrmBackend, is_integrated
from exo.gpu.backends.support import support_level
from exo.gpu.backends.visibility import Visible, visible
from exo.gpu.vocabulary.device import HOST_POOL, GPUDevice
from exo.gpu.vocabulary.errors import BackendError, ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AMD = "1002"

# gpu_metrics opens with its size (2 bytes) and format; formats from 2 on are of processors with
# graphics inside (kernel, kgd_pp_interface.h).
_FIRST_INTEGRATED_FORMAT = 2

# libdrm's list of marketing names: "device, revision, name" in hexadecimal.
_NAMES = Path("/usr/share/libdrm/amdgpu.ids")

# The lists that restrict AMD cards, in the order in which the layers apply them.
_LISTS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


class RocmBackend(DrmBackend):
    """AMD GPUs on Linux.

    ``names`` is libdrm's list of marketing names, ``topology`` where KFD's nodes lie; ``places``
    are those of the base class.
    """

    name = "rocm"
    vendor = AMD
    drivers = ("amdgpu",)
    dear_readings = rocm_readings.DEAR

    def __init__(
        self,
        *,
        names: Path | str = _NAMES,
        topology: Path | str = kfd.TOPOLOGY,
        **places: Any,
    ) -> None:
        super().__init__(**places)
        self._names = Path(names)
        self._topology = Path(topology)

    def _sample(
        self, card: drm.Card, device: GPUDevice, *, dear: bool
    ) -> tuple[dict[str, Any], dict[str, str]]:
        values, missing = rocm_readings.read(card, integrated=is_integrated(device), dear=dear)
        if values and "compute_utilization_percent" not in values:
            self._add_lower_bound(card, values, missing)
        return values, missing

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

    def _room(self, device: GPUDevice) -> tuple[int | None, int | None]:
        """The card's own account; in a processor no more is free than the machine has."""
        card, integrated = self._card(device.device_id), is_integrated(device)
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

    def _visible(self, environ: Mapping[str, str], present: Sequence[GPUDevice]) -> Visible:
        """What all lists leave; HIP counts among what ROCr leaves, in an order of its own."""
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

    def _describe(self, device_id: str, card: drm.Card) -> GPUDevice:
        integrated = _integrated(card)
        # These two the driver keeps in memory: reading them wakes no card (amdgpu_pm.c,
        # amdgpu_vram_mgr.c), and without them a sleeping card would change its identity.
        unique = drm.optional(lambda: card.text("device/unique_id")) or ""
        total = drm.optional(lambda: rocm_readings.memory(card, "total", integrated=integrated))
        identity = f"GPU-{unique}" if unique.strip("0") else card.pci_address or ""
        node, clock = kfd.NOTHING, None
        warn = critical = None
        if not card.sleeping:
            warn, critical = rocm_readings.temperature_limits(card)
            node = kfd.node(card.pci_address, self._topology)
            clock = drm.optional(lambda: rocm_readings.largest_clock_mhz(card))
        return GPUDevice(
            device_id=device_id,
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
            warn_celsius=warn,
            critical_celsius=critical,
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
