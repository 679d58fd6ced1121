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


def left_by_ray(environ: Mapping[str, str], managed: int, granted: int) -> dict[str, str]:
    """The environment in which an agent looks for devices, ``granted`` of Ray's ``managed`` GPUs.

    Ray has restricted it to those that it granted, if it did grant any.
    """
    if not managed:
        return dict(environ)
    return {**environ, **_NO_VULKAN, **({} if granted else _NO_GPU)}
