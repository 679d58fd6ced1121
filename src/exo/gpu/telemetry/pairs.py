"""Measured speed of copies between two devices, both ways, from one process that sees only them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from exo.gpu.telemetry.probe import measure, time_runs
from exo.gpu.vocabulary.errors import BackendError, OutOfDeviceMemory
from exo.gpu.vocabulary.probe import PairResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.from_thread import BlockingPortal

    from exo.gpu.backend import GPUBackend, MemoryHandle
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.probe import Measure

PAIR_SECONDS = 1.0
"""Opening both devices and copying, for each of the two ways; starting the process comes on top."""

PAIRING_BACKENDS = ("cuda", "vulkan")
"""Backends that copy across their devices and can show one process exactly two of them."""

# On each device. A direct way is so fast that starting a shorter copy would count; by way of the
# host a copy goes in smaller pieces anyway.
_DIRECT_BUFFER_BYTES = 2**28
_HOST_BUFFER_BYTES = 2**26
# A unit of work: the first run of a slow pair must end within its second.
_UNIT_BYTES = 2**20
# A driver that is slow to open is measured all the same, if shortly.
_LEAST_SECONDS = 0.3


@runtime_checkable
class PeerAbility(Protocol):
    """A backend that knows which of its devices reach each other's memory directly."""

    async def peer_access(self, source_id: str, target_id: str) -> bool | None:
        """Whether ``source_id`` reaches the memory of ``target_id``; None: not told."""
        ...


def pair_here(
    source_json: str, target_json: str, seconds: float, changes: Mapping[str, str | None]
) -> list[str]:
    """Measure both ways between two devices; runs in a worker that has opened no driver yet.

    ``changes`` are variables to set, or with None to remove, so that exactly the two are visible.
    """
    from exo.gpu.factory import GPUBackendFactory
    from exo.gpu.vocabulary.device import GPUDevice

    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    source, target = GPUDevice.from_json(source_json), GPUDevice.from_json(target_json)
    backend = GPUBackendFactory.make(source.backend)
    return [result.to_json() for result in pair_through(backend, source, target, seconds=seconds)]


def pair_through(
    backend: GPUBackend,
    source: GPUDevice,
    target: GPUDevice,
    *,
    seconds: float = PAIR_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[PairResult]:
    """There and back, each in ``seconds``; opens the backend and shuts it down.

    What a driver refuses is a result without a figure and with the driver's reason.
    """
    from anyio.from_thread import start_blocking_portal

    ends = clock() + 2 * seconds
    with start_blocking_portal() as portal:
        try:
            found = backend.find()
            pair = _same(found, source), _same(found, target)
            there, here = portal.call(_allocate, backend, *pair)
            ways = ((source, target, there, here), (target, source, here, there))
            for _, _, read, written in ways:  # drivers clear memory when it is first used
                _copier(portal, backend, read, written)(1)
            half = max(_LEAST_SECONDS, (ends - clock()) / 2)
            results: list[PairResult] = []
            for one, other, read, written in ways:
                copy = _copier(portal, backend, read, written)
                figure = measure(time_runs(copy, seconds=half, clock=clock))
                direct = portal.call(_direct, backend, read, written)
                results.append(_result(one, other, figure, direct=direct))
        except (BackendError, ImportError) as error:
            return both_unmeasured(source, target, str(error))
        finally:
            portal.call(backend.shutdown)
    return results


def _result(
    source: GPUDevice, target: GPUDevice, figure: Measure | None, *, direct: bool | None
) -> PairResult:
    reason = "it took no time that the clock could tell"
    blank = unmeasured_pair(source, target, reason, at=time.time())
    if figure is None:
        return blank
    through_host = None if direct is None else not direct
    return msgspec.structs.replace(blank, gbps=figure, through_host=through_host, reason=None)


def unmeasured_pair(source: GPUDevice, target: GPUDevice, reason: str, *, at: float) -> PairResult:
    """The result of a pair of which nothing could be measured."""
    return PairResult(
        source=source.device_id,
        target=target.device_id,
        source_hardware_id=source.hardware_id,
        target_hardware_id=target.hardware_id,
        source_driver_version=source.driver_version,
        target_driver_version=target.driver_version,
        measured_at=at,
        reason=reason,
    )


def both_unmeasured(source: GPUDevice, target: GPUDevice, reason: str) -> list[PairResult]:
    """The results of both ways where neither could be measured."""
    now = time.time()
    return [
        unmeasured_pair(source, target, reason, at=now),
        unmeasured_pair(target, source, reason, at=now),
    ]


def _same(found: list[GPUDevice], wanted: GPUDevice) -> str:
    """The id that this process gives the device: equal cards differ in their place at least."""
    for device in found:
        if _identity(device) == _identity(wanted):
            return device.device_id
    raise BackendError(f"the measuring process does not see {wanted.device_id}")


def _identity(device: GPUDevice) -> tuple[str, str | None, int | None]:
    return device.hardware_id, device.driver_manifest, device.driver_index


async def _allocate(
    backend: GPUBackend, first: str, second: str
) -> tuple[MemoryHandle, MemoryHandle]:
    """Memory of one size on both, halved until it fits."""
    size = _DIRECT_BUFFER_BYTES if isinstance(backend, PeerAbility) else _HOST_BUFFER_BYTES
    while True:
        one = None
        try:
            one = await backend.allocate(first, size)
            return one, await backend.allocate(second, size)
        except OutOfDeviceMemory:
            if one is not None:
                await backend.deallocate(one)
            if size <= _UNIT_BYTES:
                raise
            size //= 2


async def _direct(backend: GPUBackend, read: MemoryHandle, written: MemoryHandle) -> bool | None:
    """Whether the copy goes from device to device; the one that writes fetches."""
    if isinstance(backend, PeerAbility):
        return await backend.peer_access(written.device_id, read.device_id)
    return False


def _copier(
    portal: BlockingPortal, backend: GPUBackend, read: MemoryHandle, written: MemoryHandle
) -> Callable[[int], float]:
    """What copies so many units, and returns the bytes."""

    async def copy(amount: int) -> float:
        left = amount * _UNIT_BYTES
        while left:
            size = min(left, read.size_bytes)
            await backend.copy_device_to_device(read, written, size)
            left -= size
        await backend.synchronize(written.device_id)
        return float(amount * _UNIT_BYTES)

    return lambda amount: portal.call(copy, amount)
