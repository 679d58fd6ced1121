"""The memory of a process that has ended, awaited before its slot is given out again."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from exo.gpu.backend import TelemetryAbility, call_with_deadline
from exo.gpu.execution.ledger_book import SETTLE_SECONDS
from exo.gpu.scheduling.settling import is_settled
from exo.gpu.vocabulary.device import DeviceClass
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.snapshot import DeviceState
from exo.gpu.vocabulary.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from exo.gpu.backend import GPUBackend
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.lease import Lease
    from exo.gpu.vocabulary.metrics import GPUMetrics

logger = logging.getLogger("exo.gpu.nodes.returning")

# Drivers return memory within tenths of a second; a reading costs about a millisecond.
POLL_SECONDS = 0.01


# A driver that takes longer is not waited for.
READ_SECONDS = 2.0


def memory_return(
    lease: Lease,
    device: GPUDevice,
    backend: GPUBackend | None,
    leases: Callable[[], tuple[Lease, ...]],
) -> Callable[[Callable[[], bool]], None] | None:
    """What waits for the memory of a slot's last process; None where nobody could tell.

    ``leases`` are all of the machine. The memory of the host and of software drivers is back
    with the process.
    """
    if device.device_class is not DeviceClass.HARDWARE or lease.used_before_bytes is None:
        return None
    if not isinstance(backend, TelemetryAbility):
        return None

    def read() -> GPUMetrics | None:
        try:
            return call_with_deadline(
                lambda: backend.read(device.device_id),
                seconds=READ_SECONDS,
                name=f"exo-gpu-return-{device.device_id}",
            )
        except (BackendError, TimeoutError) as error:
            logger.debug("%s: not read: %s", device.device_id, error)
            return None

    def here() -> tuple[Lease, ...]:
        return tuple(one for one in leases() if one.hardware_id == lease.hardware_id)

    return MemoryReturn(lease, device, read, here).wait


class MemoryReturn:
    """Waits until a device's use is explained without the process that worked under a lease.

    ``read`` takes a new sample, or gives None where the device cannot be read, which keeps
    nobody waiting. ``leases`` are all live ones on the device; they are asked for only where the
    use is not what it was before the lease.
    """

    def __init__(
        self,
        lease: Lease,
        device: GPUDevice,
        read: Callable[[], GPUMetrics | None],
        leases: Callable[[], tuple[Lease, ...]],
    ) -> None:
        self._lease = lease
        self._device = device
        self._read = read
        self._leases = leases
        self._sample: GPUMetrics | None = None

    def wait(self, go_on: Callable[[], bool]) -> None:
        """Return once it is back, after :data:`SETTLE_SECONDS`, or when ``go_on`` says no."""
        gives_up = time.monotonic() + SETTLE_SECONDS
        while not self._is_back():
            if not go_on():
                return
            if time.monotonic() >= gives_up:
                self._tell()
                return
            time.sleep(POLL_SECONDS)

    def _is_back(self) -> bool:
        self._sample = self._read()
        alone = DeviceState(device=self._device, sample=self._sample)
        if is_settled(self._lease, alone, None):
            return True
        state = DeviceState(device=self._device, sample=self._sample, leases=self._leases())
        return is_settled(self._lease, state, None)

    def _tell(self) -> None:
        used = None if self._sample is None else self._sample.memory_used_bytes
        logger.warning(
            "%s: a process ended %g s ago, and its memory is not back: %s in use; its slot goes "
            "on without it",
            self._device.device_id,
            SETTLE_SECONDS,
            format_size(used),
        )
