"""Every reading of an NVIDIA GPU, as far as its driver gives them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from exo.gpu.backends import host, nvml_library
from exo.gpu.backends.nvml_ways import (
    FIELD_READINGS,
    FIELDS,
    MEMORY,
    QUICK,
    READINGS,
    Question,
    Reading,
    Way,
)
from exo.gpu.vocabulary.device import HOST_POOL
from exo.gpu.vocabulary.errors import ReadingMissing

if TYPE_CHECKING:
    from exo.gpu.vocabulary.device import GPUDevice

logger = logging.getLogger("exo.gpu.backends.cuda")

_SHARED = "a MIG instance shares it with the rest of its GPU"
_HALF = {
    "memory_reserved_bytes": "not told apart from what is used",
    "power_window_seconds": "the driver does not tell what its figure is an average over",
}
_UNKNOWN_TO_NVML = {"hotspot_temperature_celsius": "NVML does not tell it"}


class Target(NamedTuple):
    """What to ask about one device: its own handle, and that of the GPU which it is a part of."""

    device: GPUDevice
    handle: Any
    parent: Any | None = None
    """None for a whole GPU."""


class Readings:
    """Reads devices, and remembers for each of them what its driver will not give.

    What is not supported or denied is not asked again until :meth:`forget`.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._absent: dict[str, dict[Way, str]] = {}

    def forget(self) -> None:
        """Ask everything again: the driver was opened anew."""
        self._absent = {}

    def sample(self, target: Target, *, dear: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
        """Values by the names and in the units of GPUMetrics, and why the others are missing.

        Without ``dear``, nothing is said of :data:`~exo.gpu.backends.nvml_ways.DEAR_NAMES`.

        Raises:
            pynvml.NVMLError: for what concerns the whole GPU or library.

        """
        values: dict[str, Any] = {}
        missing = dict(_UNKNOWN_TO_NVML)
        absent = self._absent.setdefault(target.device.device_id, {})
        own, whole = self._questions(target, absent)
        for reading in READINGS if dear else QUICK:
            if reading.shared and own is not whole:
                found, reason = None, _SHARED
            else:
                found, reason = self._read(whole if reading.whole else own, reading, absent)
            if found is None and reading is MEMORY:
                found = self._unified(target, reason)
            for place, name in enumerate(reading.names):
                if found is not None and found[place] is not None:
                    values[name] = found[place]
                else:
                    missing[name] = reason if found is None else _HALF[name]
        return values, missing

    def _questions(self, target: Target, absent: dict[Way, str]) -> tuple[Question, Question]:
        """What is asked of the device itself, and of the GPU that it is or is a part of."""
        whole = target.parent is None
        numbers: list[int] = []
        for reading in FIELD_READINGS:
            if whole or not reading.shared:
                left = [way for way in reading.ways if way not in absent]
                if left and left[0] in FIELDS:
                    numbers.append(FIELDS[left[0]])
        if whole:
            asked = Question(self._nvml, target.device, target.handle, numbers)
            return asked, asked
        return (
            Question(self._nvml, target.device, target.handle),
            Question(self._nvml, target.device, target.parent, numbers),
        )

    def _read(
        self, ask: Question, reading: Reading, absent: dict[Way, str]
    ) -> tuple[tuple[Any, ...] | None, str]:
        """What the first way that works gave; else the reason that tells most."""
        reason, passing = "", False
        for way in reading.ways:
            why, will_pass = absent.get(way), False
            if why is None:
                try:
                    return way(ask), ""
                except self._nvml.NVMLError as error:
                    why, will_pass = self._refused(error, ask, reading, way, absent)
                except ReadingMissing as error:
                    why, will_pass = str(error), True
                except Exception as error:  # the vendor-read border: it costs this reading only
                    device_id = ask.device.device_id
                    logger.warning(
                        "reading %s of %s failed", reading.names[0], device_id, exc_info=True
                    )
                    why, will_pass = f"{type(error).__name__}: {error}", True
            if will_pass or not passing:  # what may pass tells more than what never was
                reason, passing = why, will_pass
        return None, reason

    def _refused(
        self, error: Any, ask: Question, reading: Reading, way: Way, absent: dict[Way, str]
    ) -> tuple[str, bool]:
        """Why NVML did not give it, and whether that may pass; what concerns all is raised."""
        if error.value in nvml_library.WHOLE:
            raise error
        reason = nvml_library.REASONS.get(error.value)
        if reason is None:
            return str(error), True
        absent[way] = reason
        if error.value == nvml_library.NO_PERMISSION:
            logger.warning("%s of %s: %s", reading.names[0], ask.device.device_id, reason)
        return reason, False

    def _unified(self, target: Target, reason: str) -> tuple[Any, ...] | None:
        """The machine's memory, for an integrated GPU that has none of its own."""
        integrated = target.parent is None and target.device.memory_pool == HOST_POOL
        if not integrated or reason != nvml_library.REASONS[nvml_library.NOT_SUPPORTED]:
            return None
        memory = host.memory()
        return memory.total_bytes, memory.used_bytes, None
