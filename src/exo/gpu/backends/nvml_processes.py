"""Who works on an NVIDIA GPU, as the driver lists it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.backend import DeviceProcess
from exo.gpu.backends import nvml_library
from exo.gpu.vocabulary.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Processes that start between the question for their number and the question for their names
# make the answer too long for the room given; so it is asked again.
_TRIES = 4
# The third version came with driver 510; the second has the same form.
_KINDS = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"),
)
# 64-bit figures from here on are blanks of the driver (see nvml_library).
_MOST_BYTES = 2**62


def processes(nvml: Any, device_id: str, handle: Any) -> list[DeviceProcess]:
    """Compute and graphics processes (``nvidia-smi``'s C and G), each once.

    In a container the process ids are the host's.

    Raises:
        BackendError: when the driver tells neither kind, with its reason.
        pynvml.NVMLError: for what concerns the whole GPU or library.

    """
    found: dict[int, int | None] = {}
    refusals: list[str] = []
    for ways in _KINDS:
        rows, refusal = _kind(nvml, handle, ways)
        for row in rows:
            # Both lists give a process's whole memory, so one that does both is not added up.
            sizes = [size for size in (_bytes(row), found.get(row.pid)) if size is not None]
            found[row.pid] = max(sizes, default=None)
        if refusal:
            refusals.append(refusal)
    if len(refusals) == len(_KINDS):
        raise BackendError(f"{device_id}: the driver lists no processes: {refusals[0]}")
    return [DeviceProcess(pid=pid, memory_bytes=size) for pid, size in sorted(found.items())]


def _kind(nvml: Any, handle: Any, ways: Iterable[str]) -> tuple[list[Any], str]:
    refusal = ""
    for way in ways:
        for _ in range(_TRIES):
            try:
                return getattr(nvml, way)(handle), ""
            except nvml.NVMLError as error:
                if error.value == nvml_library.NOT_FOUND:
                    return [], ""
                if error.value in nvml_library.WHOLE:
                    raise
                refusal = nvml_library.REASONS.get(error.value) or str(error)
                if error.value != nvml_library.INSUFFICIENT_SIZE:
                    break
    return [], refusal


def _bytes(row: Any) -> int | None:
    """What a process holds; None on Windows and in containers, where the driver does not say."""
    size = row.usedGpuMemory
    return size if size is not None and 0 <= size < _MOST_BYTES else None
