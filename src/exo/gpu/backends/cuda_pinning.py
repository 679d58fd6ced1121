"""What CUDA_VISIBLE_DEVICES leaves of the NVIDIA devices here, and what to write into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exo.gpu.backends.nvml_devices import MIG, index_of, is_instance
from exo.gpu.backends.visibility import Visible, visible
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from exo.gpu.vocabulary.device import GPUDevice

VARIABLE = "CUDA_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_BY_BUS = "PCI_BUS_ID"

HIDING: dict[str, str | None] = {VARIABLE: "-1"}
"""An index that no GPU has: CUDA then lists none."""


def visible_devices(environ: Mapping[str, str], present: Sequence[GPUDevice]) -> Visible:
    """Places of the devices that an environment leaves.

    Indices are CUDA's, whose order is by speed unless CUDA_DEVICE_ORDER says otherwise; equal
    GPUs keep the order of the bus. An index never names a MIG instance of ours: what CUDA picks
    then is for it to know.
    """
    cut = any(is_instance(device) for device in present)
    alike = len({(device.name, device.memory_bytes) for device in present}) <= 1
    return visible(
        VARIABLE,
        environ.get(VARIABLE),
        [device.hardware_id for device in present],
        order_known=not cut and (alike or environ.get(_ORDER) == _BY_BUS),
    )


def pinning_to(
    devices: Sequence[GPUDevice], inherited: Mapping[str, str], present: Sequence[GPUDevice]
) -> dict[str, str | None]:
    """CUDA_VISIBLE_DEVICES with the full UUIDs, which no order can change.

    Raises:
        BackendError: when the inherited restriction excludes one, or for a MIG instance beside
            anything else: CUDA shows a process one instance at most, and no GPU with it.

    """
    if len(devices) > 1 and any(is_instance(device) for device in devices):
        names = ", ".join(device.device_id for device in devices)
        raise BackendError(
            f"CUDA shows a process one MIG instance and nothing beside it, not {names}"
        )
    names = ",".join(_name_of(device, inherited, present) for device in devices)
    return {_ORDER: _BY_BUS, VARIABLE: names}


def _name_of(device: GPUDevice, inherited: Mapping[str, str], present: Sequence[GPUDevice]) -> str:
    present = present or [device]
    names = [known.hardware_id for known in present]
    place = names.index(device.hardware_id) if device.hardware_id in names else None
    seen = visible_devices(inherited, present)
    if place not in seen.places:
        raise BackendError(
            f"{device.device_id} is not among {VARIABLE}={inherited.get(VARIABLE)!r}"
            + (f": {seen.note}" if seen.note else "")
        )
    by_uuid = device.hardware_id.startswith(("GPU-", MIG))
    return device.hardware_id if by_uuid else str(index_of(device))
