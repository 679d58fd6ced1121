"""Which devices of a node are ours where Ray manages GPUs there: those that it granted us."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The variables by which Ray itself tells NVIDIA, AMD and Intel GPUs to work.
_NO_GPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    "ONEAPI_DEVICE_SELECTOR": "*:cpu",
}

# Vulkan knows nothing of those: through it every card would be seen, whoever has it.
_NO_VULKAN = {"VK_DRIVER_FILES": os.devnull, "VK_ICD_FILENAMES": os.devnull}


# What Ray sets for its own workers, and what would make ours slow, or part of its job.
_OF_RAY = frozenset({"OMP_NUM_THREADS", "PYTHONBREAKPOINT", "SPT_NOENV"})


def left_by_ray(
    environ: Mapping[str, str], started_with: Mapping[str, str], managed: int, granted: int
) -> dict[str, str]:
    """The environment of an agent's devices and work, ``granted`` of Ray's ``managed`` GPUs.

    It is that with which Ray was ``started_with`` there, as far as Ray itself has changed it, and
    restricted to the GPUs that it granted, if it did grant any.
    """
    left = {
        name: value
        for name, value in environ.items()
        if name not in _OF_RAY and not name.startswith("RAY_")
    }
    left |= {name: value for name, value in started_with.items() if name not in left}
    if managed:
        left |= {**_NO_VULKAN, **({} if granted else _NO_GPU)}
    return left


def environment_of_parent() -> dict[str, str]:
    """With what the process was started that started this one; empty where it may not be known."""
    import psutil

    try:
        return psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):
        return {}
