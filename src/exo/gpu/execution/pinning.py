"""The environment of a pinned process, as a value, and the device that it names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.device import GPUDevice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Changes = dict[str, str | None]
"""Variables to set, or with None to remove."""

LEASES_VARIABLE = "EXO_GPU_LEASES"
"""Ids of the leases under which a process works, separated by commas."""

GUARDED_VARIABLE = "EXO_GPU_GUARDED"
"""Names the program under which a process runs, for its guardian."""

DEVICE_VARIABLE = "EXO_GPU_DEVICE"
"""JSON of the device that a process was given; the first one of a gang."""


def pinning_changes(pinned: Changes, hidden: Iterable[Changes], device: GPUDevice) -> Changes:
    """What changes in the environment of a process that gets ``device`` and no other.

    ``hidden`` hides every other vendor; where both speak of a variable, ``pinned`` wins.
    """
    changes: Changes = {}
    for hiding in hidden:
        changes.update(hiding)
    changes.update(pinned)
    changes[DEVICE_VARIABLE] = device.to_json()
    return changes


def apply_changes(environ: Mapping[str, str], changes: Changes) -> dict[str, str]:
    """A new environment with the changes made."""
    changed = {name: value for name, value in environ.items() if name not in changes}
    changed.update({name: value for name, value in changes.items() if value is not None})
    return changed


# Runtime -> what PyTorch and JAX call the only device of it that a pinned process sees. PyTorch
# speaks of ROCm as CUDA.
_IN_TORCH = {"cuda": "cuda:0", "rocm": "cuda:0", "xpu": "xpu:0", "metal": "mps", "cpu": "cpu"}
_IN_JAX = {
    "cuda": "cuda:0",
    "rocm": "rocm:0",
    "xpu": "xpu:0",
    "metal": "METAL:0",
    "cpu": "cpu:0",
}


class CurrentDevice(GPUDevice, frozen=True):
    """The device that this process was pinned to, with its names in the frameworks.

    There it is always the first of its runtime, whatever its number on the machine.
    """

    @property
    def torch(self) -> str | None:
        """What ``torch.device`` takes: ``"cuda:0"``, also for ROCm; None where it has no word."""
        return _IN_TORCH.get(self.runtime)

    @property
    def jax(self) -> str | None:
        """Platform and number in ``jax.devices()``; None where it has no word."""
        return _IN_JAX.get(self.runtime)


def current_device(environ: Mapping[str, str] | None = None) -> CurrentDevice | None:
    """The device that this process was given, or None outside a worker, ``run`` or ``map``."""
    text = (os.environ if environ is None else environ).get(DEVICE_VARIABLE)
    return CurrentDevice.from_json(text) if text else None
