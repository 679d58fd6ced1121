"""What a vendor must offer: finding devices always, and the abilities that not all have apart."""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import msgspec

from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import AbilityMissing, NoSuchDevice
from exo.gpu.vocabulary.messages import WireValue
from exo.gpu.vocabulary.units import check_text, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from exo.gpu.vocabulary.health import DeviceFault
    from exo.gpu.vocabulary.links import Link
    from exo.gpu.vocabulary.metrics import GPUMetrics

__all__ = [
    "ComputeAbility",
    "DeviceProcess",
    "FaultAbility",
    "FaultWatch",
    "GPUBackend",
    "GPUDevice",
    "MemoryHandle",
    "PinningAbility",
    "ProcessAbility",
    "TelemetryAbility",
    "TopologyAbility",
    "call_with_deadline",
    "on_daemon_thread",
]

Result = TypeVar("Result")


class MemoryHandle(msgspec.Struct, frozen=True):
    """A piece of device memory that a backend handed out; ``size_bytes`` long.

    Raises:
        InvalidValue: for an empty id or a negative size.

    """

    handle_id: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))
    device_id: str = ""
    size_bytes: int = 0
    allocated_at: datetime = msgspec.field(default_factory=lambda: datetime.now(tz=UTC))

    def __post_init__(self) -> None:
        """Check every field."""
        check_text("handle_id", self.handle_id)
        check_text("device_id", self.device_id)
        check_whole("size_bytes", self.size_bytes)


@runtime_checkable
class TelemetryAbility(Protocol):
    """A backend that can read its devices."""

    def read(self, device_id: str) -> GPUMetrics:
        """All readings of one device at this moment; may block, so call it on a daemon thread.

        Raises:
            BackendError: when the device gave nothing at all, with the driver's reason.

        """
        ...


@runtime_checkable
class QuickTelemetryAbility(Protocol):
    """A backend whose readings differ in price, so that most samples can do without the dear."""

    def read_quickly(self, device_id: str, before: GPUMetrics) -> GPUMetrics:
        """What is cheap, read now; the rest as in ``before``, named in ``carried_readings``.

        Raises:
            BackendError: when the device gave nothing at all, with the driver's reason.

        """
        ...


class DeviceProcess(WireValue, frozen=True, kw_only=True):
    """A process that works on a device; ``memory_bytes`` is None where the driver hides it."""

    pid: int
    memory_bytes: int | None = None


@runtime_checkable
class ProcessAbility(Protocol):
    """A backend that can tell who works on its devices; dearer than a sample."""

    def processes(self, device_id: str) -> list[DeviceProcess]:
        """The processes that the driver lists, in a container with the host's process ids.

        Raises:
            BackendError: when the driver does not tell, with its reason.

        """
        ...


class FaultWatch(Protocol):
    """Hears what a driver reports of its devices, until it is closed."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Device id -> why the driver reports no fault of it."""
        ...

    def faults(self, *, timeout_seconds: float) -> Iterator[DeviceFault]:
        """What happened so far and within the time, as it comes; blocks meanwhile.

        Raises:
            BackendError: when the driver stopped reporting; what came before is given first.

        """
        ...

    def close(self) -> None:
        """Stop watching; harmless twice."""
        ...


@runtime_checkable
class FaultAbility(Protocol):
    """A backend whose driver reports faults by itself, such as NVIDIA's XIDs."""

    def watch_faults(self) -> FaultWatch:
        """Begin to hear of faults; what happened before is not told.

        Raises:
            BackendError: when this driver reports none.

        """
        ...


@runtime_checkable
class TopologyAbility(Protocol):
    """A backend that knows how its devices are joined."""

    def links(self) -> list[Link]:
        """What is known of each ordered pair of the devices found; unknown pairs are left out."""
        ...


@runtime_checkable
class PinningAbility(Protocol):
    """A backend that knows the variables which bind a process to a device, or hide all of them.

    A value of None means: remove the variable.
    """

    def pinning(
        self, devices: Sequence[GPUDevice], inherited: Mapping[str, str]
    ) -> dict[str, str | None]:
        """Variables that leave a process exactly these devices among those of this backend.

        Raises:
            BackendError: when a restriction in ``inherited`` excludes one, or when this vendor's
                variables cannot name several.

        """
        ...

    def hiding(self) -> dict[str, str | None]:
        """Variables that hide every device of this backend."""
        ...


@runtime_checkable
class ComputeAbility(Protocol):
    """A backend that runs a compute shader on a device."""

    def compute(
        self,
        device_id: str,
        shader: str,
        inputs: Sequence[bytes],
        output_bytes: int,
        groups: tuple[int, int, int],
    ) -> bytes:
        """Run a WGSL shader once and return its output buffer.

        The shader's entry point is ``main``; ``inputs`` are read-only storage buffers bound at
        0, 1, ... of group 0, and the output, ``output_bytes`` long, is bound behind them.
        """
        ...


class GPUBackend(ABC):
    """One vendor's driver: finds its devices, and moves memory where it can.

    A backend is opened by :meth:`initialize` (async) or :meth:`find` (sync, may block) and its
    calls raise :class:`~exo.gpu.vocabulary.errors.BackendError`, a ``RuntimeError``.
    """

    name: str = ""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._devices: dict[str, GPUDevice] = {}
        self.remark: str = ""
        """What the last :meth:`find` left out and why, for people; empty when nothing."""
        self.hidden: tuple[GPUDevice, ...] = ()
        """Devices that are there, but that the environment keeps from this process."""

    @abstractmethod
    def find(self) -> list[GPUDevice]:
        """Open the driver and list its devices; blocks. An empty list is a full answer.

        Raises:
            BackendUnavailable: with the exact reason and what to install.

        """

    async def initialize(self) -> None:
        """Find the devices without blocking the event loop.

        Raises:
            BackendUnavailable: with the exact reason and what to install.

        """
        found = await on_daemon_thread(self.find, name=f"exo-gpu-find-{self.name}")
        self._devices = {device.device_id: device for device in found}

    async def shutdown(self) -> None:
        """Free what is still allocated and let go of the driver; harmless twice."""
        self._devices = {}

    def list_devices(self) -> list[GPUDevice]:
        """The devices found by :meth:`initialize`."""
        return list(self._devices.values())

    def get_device(self, device_id: str) -> GPUDevice | None:
        """One device found by :meth:`initialize`, or None."""
        return self._devices.get(device_id)

    async def allocate(self, device_id: str, size_bytes: int) -> MemoryHandle:
        """Reserve ``size_bytes`` on the device.

        Raises:
            OutOfDeviceMemory: when the device or its pool holds no more.
            AbilityMissing: when this backend moves no memory.

        """
        raise self._missing("allocate memory")

    async def deallocate(self, handle: MemoryHandle) -> None:
        """Give the memory back.

        Raises:
            InvalidHandle: when it was freed before or is not of this backend.

        """
        raise self._missing("free memory")

    async def copy_to_device(
        self, src: bytes, dst_handle: MemoryHandle, offset_bytes: int = 0
    ) -> None:
        """Write ``src`` into the memory, from ``offset_bytes`` on."""
        raise self._missing("copy to a device")

    async def copy_from_device(
        self, src_handle: MemoryHandle, offset_bytes: int, size_bytes: int
    ) -> bytes:
        """Read ``size_bytes`` from ``offset_bytes`` on."""
        raise self._missing("copy from a device")

    async def copy_device_to_device(
        self, src_handle: MemoryHandle, dst_handle: MemoryHandle, size_bytes: int
    ) -> None:
        """Copy the first ``size_bytes`` of one piece of memory into another."""
        raise self._missing("copy across devices")

    async def synchronize(self, device_id: str) -> None:
        """Wait until everything submitted to the device is done."""
        raise self._missing("synchronize")

    async def get_device_memory_info(self, device_id: str) -> dict[str, int | None]:
        """Bytes of ``total_``, ``used_``, ``available_`` and ``reserved_bytes``; None: unknown."""
        metrics = await self._read(device_id)
        return {
            "total_bytes": metrics.memory_total_bytes,
            "used_bytes": metrics.memory_used_bytes,
            "available_bytes": metrics.memory_free_bytes,
            "reserved_bytes": metrics.memory_reserved_bytes,
        }

    async def get_device_temperature(self, device_id: str) -> float | None:
        """Degrees Celsius, or None."""
        return (await self._read(device_id)).temperature_celsius

    async def get_device_power_usage(self, device_id: str) -> float | None:
        """Watts, or None."""
        return (await self._read(device_id)).power_watts

    async def get_device_clock_rate(self, device_id: str) -> float | None:
        """MHz, or None."""
        return (await self._read(device_id)).clock_rate_mhz

    def require(self, device_id: str) -> GPUDevice:
        """One device found by :meth:`initialize`.

        Raises:
            NoSuchDevice: for an id that is not among them.

        """
        device = self._devices.get(device_id)
        if device is None:
            known = ", ".join(self._devices) or "none"
            raise NoSuchDevice(f"{self.name} has no device {device_id!r} (it has: {known})")
        return device

    async def _read(self, device_id: str) -> GPUMetrics:
        if not isinstance(self, TelemetryAbility):
            raise self._missing("read its devices")
        self.require(device_id)
        return await on_daemon_thread(
            lambda: self.read(device_id), name=f"exo-gpu-read-{device_id}"
        )

    def _missing(self, what: str) -> AbilityMissing:
        return AbilityMissing(f"the {self.name} backend cannot {what}")


def call_with_deadline(function: Callable[[], Result], *, seconds: float, name: str) -> Result:
    """Run a blocking driver call on a daemon thread and wait for it at most ``seconds``.

    A call that does not return is abandoned: its thread is a daemon, so it cannot keep the
    program from exiting, and a late result is dropped.

    Raises:
        TimeoutError: naming ``name``, when the deadline passed.
        Exception: whatever ``function`` raised.

    """
    box: list[Any] = []
    done = threading.Event()

    def call() -> None:
        try:
            box.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, whatever it is
            box.append((False, error))
        done.set()

    threading.Thread(target=call, name=name, daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"{name} gave no answer within {seconds:g} s")
    succeeded, value = box[0]
    if not succeeded:
        raise value
    return value


async def on_daemon_thread(function: Callable[[], Result], *, name: str) -> Result:
    """Run a blocking driver call on a daemon thread and await it (asyncio or trio).

    A worker thread of the event loop would keep the interpreter from exiting when a driver
    hangs; this one does not, and cancelling the wait abandons it.
    """
    import anyio
    from anyio import from_thread, lowlevel

    box: list[Any] = []
    done = anyio.Event()
    token = lowlevel.current_token()

    def call() -> None:
        try:
            box.append((True, function()))
        except BaseException as error:  # noqa: BLE001 - handed to the awaiting task, whatever it is
            box.append((False, error))
        try:
            from_thread.run_sync(done.set, token=token)
        except (RuntimeError, anyio.RunFinishedError):
            return  # the loop ended first: nobody waits any more

    threading.Thread(target=call, name=name, daemon=True).start()
    await done.wait()
    succeeded, value = box[0]
    if not succeeded:
        raise value
    return value
